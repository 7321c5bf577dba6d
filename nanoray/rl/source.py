"""What rollouts are made from, and rollouts in the trainer's own process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nanoray.inference.engine import Engine, EngineConfig
from nanoray.model.gpt import DTYPES, GPT, GPTConfig
from nanoray.rl.rollout import RolloutConfig, Rollouts
from nanoray.rl.trajectory import Trajectory
from nanoray.task import Task
from nanoray.text.tokenizer import Tokenizer

Groups = list[list[Trajectory]]
"""The answers to each question."""


@dataclass(frozen=True)
class PartAsked:
    """Some questions, and what their answers follow from besides the weights."""

    questions: Sequence[int]
    step: int
    version: int
    is_held_out: bool = False
    """They are those of `RolloutSource.held_out`."""
    repeats: Sequence[int] = ()
    """How often the step has asked each of them before; empty where it has asked none."""


@dataclass(frozen=True, kw_only=True)
class RolloutSource:
    """What a worker makes its rollouts from; weights are published."""

    model: GPTConfig
    compute_dtype: str
    tokenizer: dict[str, Any]  # Any: JSON
    """`Tokenizer.to_json()`."""
    task: Task
    rollout: RolloutConfig
    engine: EngineConfig
    held_out: tuple[Task, RolloutConfig] | None = None
    """What is asked to measure the policy; None where nothing is."""

    def build(self, device: torch.device) -> Engine:
        """Build an engine whose weights are still to be loaded."""
        model = GPT(self.model, DTYPES[self.compute_dtype]).to(device)
        tokenizer = Tokenizer.from_json(self.tokenizer, "what the driver sent")
        return Engine(model, tokenizer, self.engine)

    def collect(
        self, engine: Engine, part: PartAsked, on_progress: Callable[[], None] = lambda: None
    ) -> list[list[Trajectory]]:
        """Answer the questions of a part with the weights that are loaded."""
        task, config = self.task, self.rollout
        if part.is_held_out:
            assert self.held_out is not None, "nothing is held out"
            task, config = self.held_out
        rollouts = Rollouts(engine, config)
        rollouts.on_progress = on_progress
        return rollouts.collect(
            task,
            part.questions,
            step=part.step,
            policy_version=part.version,
            repeats=part.repeats,
        )


class Collector(Protocol):
    """Whoever draws rollouts: this process, or workers elsewhere."""

    on_progress: Callable[[], None]
    """Called while one waits for answers, to say that somebody lives."""

    def publish(self, weights: dict[str, Tensor], version: int) -> None:
        """Copy weights, for all that is started from now on."""
        ...

    def start(
        self,
        questions: Sequence[int],
        *,
        step: int,
        version: int,
        is_held_out: bool = False,
        repeats: Sequence[int] = (),
    ) -> Any:  # Any: what `finish` is given
        """Let questions be answered with the newest weights."""
        ...

    def finish(self, pending: Any) -> Groups:  # Any: what `start` gave
        """Wait for what was started; gives the group of each question, in their order."""
        ...


class LocalRollouts:
    """Draws rollouts in this process, between two steps of its training."""

    def __init__(self, source: RolloutSource, device: torch.device) -> None:
        self.source, self.engine = source, source.build(device)
        self.on_progress: Callable[[], None] = lambda: None

    def publish(self, weights: dict[str, Tensor], version: int) -> None:
        """Copy weights, rounded to the compute dtype."""
        del version
        self.engine.load_weights(weights)

    def start(
        self,
        questions: Sequence[int],
        *,
        step: int,
        version: int,
        is_held_out: bool = False,
        repeats: Sequence[int] = (),
    ) -> Groups:
        """Answer the questions."""
        part = PartAsked(list(questions), step, version, is_held_out, list(repeats))
        return self.source.collect(self.engine, part, lambda: self.on_progress())

    def finish(self, pending: Groups) -> Groups:
        """Give the answers."""
        return pending
