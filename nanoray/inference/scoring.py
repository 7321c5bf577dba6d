"""How likely a model finds given continuations of a text: what multiple choice is scored by.

Questions are laid end to end in one pass, so nothing is padded. The options of a question attend to
one copy of the text before them: in each layer keys and values are stored before anything attends,
and so a text and all its continuations are computed in the same pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoray.config import InputError
from nanoray.model.attention import fastest_kernels
from nanoray.model.gpt import GPT
from nanoray.model.kv_cache import CacheLayout, KVCache, Span

LOGIT_BYTES = 2**28
"""Of the largest piece of logits that is held at once."""


@dataclass(frozen=True)
class Question:
    """A text, and what may come after it."""

    prefix: Sequence[int]
    """Ids, at least one."""
    options: Sequence[Sequence[int]]
    """Continuations, each of any length."""

    @property
    def num_computed(self) -> int:
        """How many tokens a pass computes: what comes after an option's last token is not asked."""
        return len(self.prefix) + sum(max(0, len(option) - 1) for option in self.options)

    @property
    def longest(self) -> int:
        """Tokens of the text with its longest option."""
        return len(self.prefix) + max(map(len, self.options), default=0)


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of one option."""

    logprobs: list[float]
    """Of each token after all before it, in nats."""
    is_greedy: bool
    """Whether each token is the most likely one at its place."""


class Scorer:
    """Scores questions by one model, as many in a pass as are allowed."""

    def __init__(self, model: GPT, *, batch_size: int = 32, pass_tokens: int = 8192) -> None:
        """Keep the limits; a question longer than `pass_tokens` has a pass for itself.

        Args:
            model: in the precision that counts.
            batch_size: most questions of a pass.
            pass_tokens: most tokens of a pass.
        """
        self.model, self.batch_size, self.pass_tokens = model, batch_size, pass_tokens
        self.device = model.embedding.weight.device
        self.longest = model.cos.size(0)
        """Tokens that a text and its continuation may have together."""
        self._cache: KVCache | None = None

    def score(self, questions: Sequence[Question]) -> list[list[Likelihood]]:
        """Score all options of all questions.

        Raises:
            InputError: a question is longer than rotary angles reach.
        """
        for question in questions:
            assert question.prefix, "the first token of a text has nothing that it could follow"
            if question.longest > self.longest:
                raise InputError(
                    f"A question has {question.longest} tokens, and the model can read "
                    f"{self.longest}. Shorten it."
                )
        scored: list[list[Likelihood]] = []
        with torch.inference_mode(), fastest_kernels(self.device, same_shapes=False):
            for batch in self._batches(questions):
                scored += self._score_pass(batch)
        return scored

    def _batches(self, questions: Sequence[Question]) -> Iterator[list[Question]]:
        batch: list[Question] = []
        for question in questions:
            total = sum(q.num_computed for q in batch) + question.num_computed
            if batch and (len(batch) == self.batch_size or total > self.pass_tokens):
                yield batch
                batch = []
            batch.append(question)
        if batch:
            yield batch

    def _score_pass(self, batch: list[Question]) -> list[list[Likelihood]]:
        """Compute one pass, and read off what each option is worth."""
        ids: list[int] = []
        positions: list[int] = []
        spans: list[Span] = []
        rows: list[int] = []  # of the pass, whose logits are wanted
        targets: list[int] = []
        for question in batch:
            start, P = len(ids), len(question.prefix)
            ids += question.prefix
            positions += range(P)
            prefix_slots = torch.arange(start, start + P, device=self.device)
            spans.append(Span(start, start + P, 0, prefix_slots))
            for option in question.options:
                own, computed = len(ids), max(0, len(option) - 1)
                rows += [start + P - 1, *range(own, own + computed)][: len(option)]
                targets += option
                if computed:
                    ids += option[:-1]
                    positions += range(P, P + computed)
                    slots = torch.arange(own, own + computed, device=self.device)
                    spans.append(Span(own, own + computed, P, torch.cat([prefix_slots, slots])))
        hidden = self._hidden(ids, positions, tuple(spans))
        logprobs, is_best = self._judge(hidden, rows, targets)
        return read_off(batch, logprobs, is_best)

    def _hidden(self, ids: list[int], positions: list[int], spans: tuple[Span, ...]) -> Tensor:
        """Compute the normed residual stream of all tokens of a pass, (N, D)."""
        N = len(ids)
        layout = CacheLayout(
            positions=torch.tensor(positions, device=self.device),
            slots=torch.arange(N, device=self.device),
            tables=torch.zeros((0, 0), dtype=torch.int64, device=self.device),
            spans=spans,
        )
        cache = self._room_for(N)
        return self.model.hidden_cached(torch.tensor(ids, device=self.device), cache, layout)

    def _room_for(self, num_tokens: int) -> KVCache:
        """Give a cache of blocks of one token, so that any two texts can share any beginning."""
        if self._cache is None or self._cache.pool.size(2) < num_tokens:
            config, model = self.model.config, self.model
            shape = (config.num_layers, config.num_kv_heads, config.head_dim)
            self._cache = None  # before its successor, so that they are never there together
            self._cache = KVCache(shape, num_tokens, 1, model.compute_dtype, self.device)
        return self._cache

    def _judge(
        self, hidden: Tensor, rows: list[int], targets: list[int]
    ) -> tuple[list[float], list[bool]]:
        """Give each target's log-probability after its row, and whether nothing is more likely."""
        logprobs: list[float] = []
        is_best: list[bool] = []
        size = max(1, LOGIT_BYTES // (4 * self.model.config.vocab_size))
        for start in range(0, len(rows), size):
            part = torch.tensor(rows[start : start + size], device=self.device)
            wanted = torch.tensor(targets[start : start + size], device=self.device)
            logits = self.model.logits(hidden[part])  # (rows, V)
            chosen = logits.gather(1, wanted[:, None])[:, 0]
            logprobs += (chosen - logits.logsumexp(1)).tolist()
            is_best += (logits.argmax(1) == wanted).tolist()
        return logprobs, is_best


def read_off(
    batch: Sequence[Question], logprobs: list[float], is_best: list[bool]
) -> list[list[Likelihood]]:
    """Cut the values of all tokens of a pass into those of each option of each question."""
    scored, at = [], 0
    for question in batch:
        options = []
        for option in question.options:
            end = at + len(option)
            options.append(Likelihood(logprobs[at:end], all(is_best[at:end])))
            at = end
        scored.append(options)
    return scored
