"""Requests in, tokens out: many continuations at once, over one KV cache.

`Engine.step` is the heartbeat. It computes one chunk of each sequence that the scheduler chose, and
draws the next token of each that is ready. Serving, evals and RL call it in a loop; nothing runs
between two calls, and the caller decides on threads.
"""

import itertools
import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoray.config import InputError
from nanoray.inference.blocks import BlockManager
from nanoray.inference.runner import Runner
from nanoray.inference.sampling import SamplingParams, sample_tokens, uniform
from nanoray.inference.scheduler import Chunk, Scheduler
from nanoray.inference.sequence import FinishReason, Sequence, TokenLogprobs, TokenOutput
from nanoray.inference.text_stream import TextStream
from nanoray.inference.tools import Part, ToolUse
from nanoray.model.gpt import GPT
from nanoray.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How much an engine does at once."""

    max_sequences: int = 32
    """Most continuations that are computed at once; others wait."""
    step_tokens: int = 512
    """Most tokens of one step; a longer prompt takes several steps, between those of others."""
    block_size: int = 16
    """Tokens of one block of the cache."""
    num_blocks: int | None = None
    """Blocks of the cache; None for as many as `max_sequences` of full length need."""
    context_tokens: int | None = None
    """Most tokens of a prompt and its continuation together; None for as many as a row of training
    had. Rotary angles reach further."""

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: a number that is too small.
        """
        least_of = {"max_sequences": 1, "block_size": 1, "num_blocks": 2, "context_tokens": 2}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}.")
        if self.step_tokens < self.max_sequences:
            raise InputError(
                f"step_tokens {self.step_tokens} is less than max_sequences {self.max_sequences}, "
                "and each running sequence takes one token of every step. Raise it."
            )


class Engine:
    """Continues prompts by a model, as many at once as its cache holds."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, config: EngineConfig) -> None:
        """Take over a model: its weights are rounded to its compute dtype, once and for all.

        Raises:
            InputError: the model's rotary angles do not reach as far as the context.
        """
        self.model = model.requires_grad_(False).eval().to(dtype=model.compute_dtype)
        self.tokenizer, self.config = tokenizer, config
        size = config.block_size
        num_blocks, context = config.num_blocks, config.context_tokens or model.config.max_seq_len
        if context > model.cos.size(0):
            raise InputError(
                f"context_tokens {context} is more than the {model.cos.size(0)} positions that the "
                "model's rotary angles reach. Lower it."
            )
        if num_blocks is None:
            num_blocks = 1 + config.max_sequences * -(-context // size)
        self.blocks = BlockManager(num_blocks, size)
        self.scheduler = Scheduler(self.blocks, config.max_sequences, config.step_tokens)
        self.runner = Runner(self.model, num_blocks, size)
        self.context_tokens = min(context, (num_blocks - 1) * size)
        """Most tokens of a prompt and its continuation together."""
        special = tokenizer.special_ids
        self.eos_ids = [special["<|assistant_end|>"], special["<|bos|>"]]
        """Tokens that end a turn, or a document."""
        self._requests: dict[int, list[Sequence]] = {}
        self._numbers = itertools.count()

    @property
    def num_running(self) -> int:
        """Continuations that have a place in the cache."""
        return len(self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Continuations that wait for a place."""
        return len(self.scheduler.waiting)

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._requests)

    def is_open(self, request: int) -> bool:
        """Whether a request will have more tokens."""
        return request in self._requests

    def add(self, prompt: list[int], params: SamplingParams) -> int:
        """Let a prompt be continued from the next step on; gives the request's number.

        Raises:
            InputError: an empty prompt, ids that the vocabulary does not have, or a prompt that
                leaves no room in the context.
        """
        self.check_prompt(prompt)
        request = next(self._numbers)
        leader: Sequence | None = None
        sequences = []
        for sample in range(params.num_samples):
            sequence = Sequence(
                request,
                sample,
                list(prompt),
                len(prompt),
                params,
                TextStream(params.stop),
                ToolUse(self.tokenizer) if params.tools else None,
                leader,
                prompt_logprobs=[None] if params.prompt_logprobs else None,
            )
            leader = leader or sequence
            sequences.append(sequence)
            self.scheduler.add(sequence)
        self._requests[request] = sequences
        return request

    def check_prompt(self, prompt: list[int]) -> None:
        """Refuse a prompt that cannot be continued, as `add` does."""
        if not prompt:
            raise InputError("The prompt is empty. Give at least one token.")
        V = self.model.config.vocab_size
        wrong = next((token for token in prompt if not 0 <= token < V), None)
        if wrong is not None:
            raise InputError(
                f"Token id {wrong} is not in the vocabulary: ids go from 0 to {V - 1}."
            )
        if len(prompt) >= self.context_tokens:
            raise InputError(
                f"This model's maximum context length is {self.context_tokens} tokens, and the "
                f"prompt has {len(prompt)}. Shorten it."
            )

    def abort(self, request: int) -> None:
        """End a request, whatever it has reached; one that has ended already is left alone."""
        for sequence in self._requests.pop(request, []):
            if sequence.finish_reason is None:
                self.scheduler.remove(sequence)
                sequence.finish_reason = FinishReason.ABORT

    def step(self) -> list[TokenOutput]:
        """Compute one step; gives the tokens that it brought, of each sequence in order."""
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        computed = self.runner.run(chunks, self.blocks.drain_taken())
        ready: list[tuple[Sequence, Tensor]] = []
        for chunk, logits in zip(chunks, computed, strict=True):
            sequence = chunk.sequence
            sequence.num_computed = chunk.end
            self.blocks.share(sequence.table, sequence.tokens[: chunk.end])
            if logits is not None:
                self._keep_prompt_logprobs(chunk, logits)
            if logits is not None and chunk.reaches_end:
                ready.append((sequence, logits[-1]))
        return self._draw(ready) if ready else []

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Go on with other weights of the same model from the next step on.

        Running sequences keep the tokens they have; their keys and values are computed anew.
        """
        with torch.inference_mode():
            self.model.load_state_dict(weights)
        self.scheduler.preempt_all()
        self.blocks.forget_all()

    def _draw(self, ready: list[tuple[Sequence, Tensor]]) -> list[TokenOutput]:
        """Draw the next token of each sequence from its logits, (V,)."""
        logits = torch.stack([row for _, row in ready])  # (S, V)
        finite = logits.isfinite().all(-1).tolist()
        params = [sequence.params for sequence, _ in ready]
        draws = [uniform(s.params.seed, s.sample, s.num_generated) for s, _ in ready]
        allowed = logits.nan_to_num()
        for row, (sequence, _) in enumerate(ready):
            if sequence.num_generated < sequence.params.min_tokens:
                allowed[row, self.eos_ids] = -torch.inf
        tokens = sample_tokens(allowed, params, draws).tolist()
        known = self._logprobs(logits, tokens, params)
        outputs = []
        for row, (sequence, _) in enumerate(ready):
            if finite[row]:
                outputs += self._extend(sequence, tokens[row], known[row])
            else:
                logger.error("request %d: the model gave no finite numbers", sequence.request)
                outputs.append(self._append(sequence, tokens[row], FinishReason.ERROR))
        return outputs

    def _extend(
        self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None
    ) -> list[TokenOutput]:
        """Add a token to a sequence, and what its tool puts after it."""
        outputs = [self._append(sequence, token, None, logprobs)]
        while sequence.forced and sequence.finish_reason is None:
            outputs.append(self._append(sequence, sequence.forced.pop(0), forced=True))
        return outputs

    def _append(
        self,
        sequence: Sequence,
        token: int,
        reason: FinishReason | None = None,
        logprobs: TokenLogprobs | None = None,
        *,
        forced: bool = False,
    ) -> TokenOutput:
        """Add one token to a sequence, and end it if that was the last."""
        first = sequence.num_generated == 0
        sequence.tokens.append(token)
        part = self._part(sequence, token)
        if part is Part.TEXT:
            text = sequence.text.add(self.tokenizer.decode_bytes([token]))
        else:  # neither a character nor a stop string goes on behind it
            text = sequence.text.finish()
        if reason is None:
            reason = self._end(sequence, token)
        if reason is not None:
            text += sequence.text.finish()
            reason = FinishReason.STOP if sequence.text.stopped else reason
            self._finish(sequence, reason)
        return TokenOutput(
            request=sequence.request,
            sample=sequence.sample,
            token=token,
            part=part,
            forced=forced,
            text=text,
            logprobs=logprobs,
            prompt_logprobs=tuple(sequence.prompt_logprobs or ()) if first else (),
            cached_tokens=sequence.cached_tokens if first else 0,
            finish_reason=reason,
        )

    def _part(self, sequence: Sequence, token: int) -> Part:
        """Say what a token is to its turn; queues what a tool puts after it."""
        if sequence.tool is None:
            return Part.MARKER if token >= self.tokenizer.bos_id else Part.TEXT
        part, following = sequence.tool.observe(token)
        sequence.forced += following
        return part

    def _end(self, sequence: Sequence, token: int) -> FinishReason | None:
        """Say whether, and why, a sequence ends with a token."""
        if token in self.eos_ids and not sequence.params.ignore_eos:
            return FinishReason.STOP
        if sequence.text.stopped:
            return FinishReason.STOP
        full = len(sequence.tokens) >= self.context_tokens
        return FinishReason.LENGTH if full or sequence.is_complete else None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Give the place of a sequence free."""
        sequence.finish_reason = reason
        self.scheduler.remove(sequence)
        if all(one.finish_reason for one in self._requests[sequence.request]):
            del self._requests[sequence.request]

    def _logprobs(
        self, logits: Tensor, tokens: list[int], params: list[SamplingParams]
    ) -> list[TokenLogprobs | None]:
        """Give the log-probabilities that are asked for of the tokens drawn, one per row."""
        known: list[TokenLogprobs | None] = [None] * len(tokens)
        asked = [one.num_logprobs for one in params]
        for count in {count for count in asked if count is not None}:
            rows = [row for row, own in enumerate(asked) if own == count]
            found = token_logprobs(logits[rows], [tokens[row] for row in rows], count)
            for row, logprobs in zip(rows, found, strict=True):
                known[row] = logprobs
        return known

    def _keep_prompt_logprobs(self, chunk: Chunk, logits: Tensor) -> None:
        """Keep the log-probabilities of prompt tokens that a chunk's logits predict."""
        sequence = chunk.sequence
        if sequence.prompt_logprobs is None:
            return
        begin = len(sequence.prompt_logprobs)
        end = min(chunk.end + 1, sequence.num_prompt)
        if begin >= end or logits.size(0) < chunk.end - chunk.start:
            return
        rows = logits[begin - 1 - chunk.start : end - 1 - chunk.start]
        count = sequence.params.num_logprobs or 0
        known = token_logprobs(rows, sequence.tokens[begin:end], count)
        sequence.prompt_logprobs += known


def token_logprobs(logits: Tensor, tokens: list[int], num_best: int) -> list[TokenLogprobs]:
    """Give the log-probability of each row's token, and of the row's most likely ones.

    Both come from the same numbers, so a token that is the most likely one has exactly its value.

    Args:
        logits: (N, V) fp32, as the model gave them: before temperature, top-k and top-p.
        tokens: N ids.
        num_best: how many of the most likely ones.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(num_best, logits.size(-1)), dim=-1)
    best = [
        tuple(zip(row_ids, row_values, strict=True))
        for row_ids, row_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return [TokenLogprobs(*each) for each in zip(tokens, own, best, strict=True)]
