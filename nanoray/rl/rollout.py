"""Rollouts: groups of answers to a task's questions, drawn by an engine and graded."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from nanoray.config import InputError, RunFailedError
from nanoray.inference.engine import Engine
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.rl.trajectory import Trajectory
from nanoray.task import Task
from nanoray.text.chat import render_for_completion
from nanoray.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How answers are drawn; the defaults are nanochat's."""

    num_samples: int = 16
    """Answers to each question: a group, whose mean reward its advantages are measured from."""
    max_new_tokens: int = 256
    """Most tokens of an answer, those of its tool included; the context may leave less."""
    temperature: float = 1.0
    """Of the draws; the log-probabilities are those at temperature 1."""
    top_k: int | None = 50
    """Draw among this many most likely tokens; None for all."""
    seed: int = 0
    """Together with the step and the question it decides all draws."""

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: a value outside of its range.
        """
        for name in ("num_samples", "max_new_tokens", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}.")
        if self.temperature == 0 and self.num_samples > 1:
            raise InputError(
                f"At temperature 0 all {self.num_samples} answers to a question are the same. "
                "Raise it, or give num_samples 1."
            )


class Rollouts:
    """Draws and grades answers with one engine, which nothing else uses meanwhile."""

    def __init__(self, engine: Engine, config: RolloutConfig) -> None:
        """Use an engine; it rounds the weights of its model in place, so a trainer gives a copy."""
        self.engine, self.config = engine, config
        self.version: int | None = None
        """Of the weights that were loaded last; None while they are those of the engine's model."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called while answers are drawn, to say that somebody lives."""

    def load(self, weights: dict[str, Tensor], version: int) -> None:
        """Go on with other weights; they are copied, and rounded to the compute dtype."""
        self.engine.load_weights(weights)
        self.version = version

    def collect(
        self,
        task: Task,
        questions: Sequence[int],
        *,
        step: int,
        policy_version: int,
        repeats: Sequence[int] = (),
    ) -> list[list[Trajectory]]:
        """Draw a group of answers to each question, and grade them.

        The tokens of a group follow from weights, config, step and question; the other questions
        can change its log-probabilities in the last bits, by the shape of the batch. The same call
        gives the same bits, whatever the engine did before. A question that the step has asked
        before, so many times as `repeats` says of each, is drawn anew.

        Returns:
            For each question, in their order, its samples, in theirs.

        Raises:
            InputError: a question's prompt leaves no room for an answer.
            RunFailedError: the model gave no finite numbers.
            ValueError: other weights are loaded than those of `policy_version`.
        """
        if self.version not in (None, policy_version):
            raise ValueError(f"Version {policy_version} was asked for, {self.version} is loaded.")
        assert not self.engine.has_work, "another user of the engine"
        prompts = [self.prompt(task, question) for question in questions]
        # A cached prompt would be computed in pieces of another shape, and rounded otherwise.
        self.engine.blocks.forget_all()
        asked = zip(questions, repeats or [0] * len(questions), strict=True)
        places = [(step, question, repeat) for question, repeat in asked]
        requests = [
            self.engine.add(prompt, self._params(prompt, question_seed(self.config.seed, *place)))
            for prompt, place in zip(prompts, places, strict=True)
        ]
        drawn: dict[tuple[int, int], list[TokenOutput]] = defaultdict(list)
        while self.engine.has_work:
            self.on_progress()
            for output in self.engine.step():
                drawn[output.request, output.sample].append(output)
        return [
            [
                self._graded(
                    task, prompt, drawn[request, sample], question=question, version=policy_version
                )
                for sample in range(self.config.num_samples)
            ]
            for request, prompt, question in zip(requests, prompts, questions, strict=True)
        ]

    def prompt(self, task: Task, question: int) -> list[int]:
        """Render a question, with the assistant's turn opened.

        Raises:
            InputError: it leaves no room for an answer.
        """
        most = self.engine.context_tokens
        messages = task.example(question).messages
        # Cut no shorter than the context: what would be cut is refused.
        prompt = render_for_completion(messages, self.engine.tokenizer, max_tokens=most)
        if len(prompt) >= most:
            raise InputError(
                f"Question {question} of {task.name} has at least {len(prompt)} tokens and leaves "
                f"no room for an answer in a context of {most}. Leave it out."
            )
        return prompt

    def _params(self, prompt: list[int], seed: int) -> SamplingParams:
        """Say how the answers to a question are drawn."""
        config = self.config
        return SamplingParams(
            max_tokens=min(config.max_new_tokens, self.engine.context_tokens - len(prompt)),
            temperature=config.temperature,
            top_k=config.top_k,
            seed=seed,
            num_samples=config.num_samples,
            tools=True,
            num_logprobs=0,
        )

    def _graded(
        self,
        task: Task,
        prompt: list[int],
        outputs: Sequence[TokenOutput],
        *,
        question: int,
        version: int,
    ) -> Trajectory:
        """Grade one answer."""
        if outputs[-1].finish_reason is FinishReason.ERROR:
            raise RunFailedError(
                f"The weights of version {version} gave no finite numbers for question {question} "
                f"of {task.name}. The training has diverged: go back to an earlier checkpoint, and "
                "lower the learning rate."
            )
        text = answer_text(outputs, self.engine.tokenizer, self.engine.eos_ids)
        reward = 1.0 if task.grade(question, text).is_correct else 0.0
        return trajectory_of(
            prompt, outputs, question=question, policy_version=version, text=text, reward=reward
        )


def question_seed(seed: int, step: int, question: int, repeat: int = 0) -> int:
    """Give the seed of one request, 64 bits; no worker, batch or restart has a part in it."""
    place = f"{seed} {step} {question}" + (f" {repeat}" if repeat else "")
    digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
    return int.from_bytes(digest)


def answer_text(
    outputs: Sequence[TokenOutput], tokenizer: Tokenizer, eos_ids: Sequence[int]
) -> str:
    """Decode an answer as the evaluation does: tool blocks included, without what ended it."""
    return tokenizer.decode([output.token for output in outputs if output.token not in eos_ids])


def trajectory_of(
    prompt: Sequence[int],
    outputs: Sequence[TokenOutput],
    *,
    question: int,
    policy_version: int,
    text: str,
    reward: float,
) -> Trajectory:
    """Put a prompt and the whole answer to it together."""
    last = outputs[-1].finish_reason
    assert last is not None, "the answer has not ended"
    return Trajectory(
        tokens=[*prompt, *(output.token for output in outputs)],
        loss_mask=[0] * len(prompt) + [int(not output.forced) for output in outputs],
        logprobs=[0.0] * len(prompt) + [_logprob(output) for output in outputs],
        reward=reward,
        policy_version=policy_version,
        question=question,
        sample=outputs[0].sample,
        text=text,
        finish_reason=last,
    )


def _logprob(output: TokenOutput) -> float:
    """Give the log-probability of a token; 0 if the model did not draw it."""
    if output.forced:
        return 0.0
    assert output.logprobs is not None, "log-probabilities were not asked for"
    return output.logprobs.logprob
