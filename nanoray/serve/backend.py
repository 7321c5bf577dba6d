"""What the API needs of a model: its facts, and tokens for a prompt. Deployments provide it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from nanoray.inference.engine_thread import EngineThread
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import TokenOutput
from nanoray.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Step:
    """What one step of an engine brought to one request, or a few steps that follow each other."""

    outputs: list[TokenOutput]
    replica: str
    """Whose engine it was."""
    kv_usage: float
    """Share of that engine's cache that is in use, 0 to 1."""
    checkpoint: str | None = None
    """Whose weights the engine had, as RUN/stage@step; None where they are of no run."""

    def by_sample(self) -> dict[int, list[TokenOutput]]:
        """Give the outputs of each sample."""
        samples: dict[int, list[TokenOutput]] = {}
        for output in self.outputs:
            samples.setdefault(output.sample, []).append(output)
        return samples


def no_checkpoint() -> None:
    """Say that the weights are of no run."""


async def engine_steps(
    thread: EngineThread,
    replica: str,
    prompt: list[int],
    params: SamplingParams,
    checkpoint: Callable[[], str | None] = no_checkpoint,
) -> AsyncIterator[Step]:
    """Continue a prompt by an engine of this process."""
    async for outputs in thread.generate(prompt, params):
        yield Step(outputs, replica, thread.engine.blocks.usage, checkpoint())


async def engine_works(thread: EngineThread, stuck_seconds: float) -> bool:
    """Say whether an engine of this process has neither failed nor been silent for so long."""
    return thread.failure is None and thread.seconds_since_beat() <= stuck_seconds


async def always() -> bool:
    """Say yes."""
    return True


async def unchanged() -> None:
    """Know of no other checkpoint than the one at the start."""


class Generate(Protocol):
    """Continues a prompt; closing the iterator frees the place."""

    def __call__(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        """Yield steps until every sample has ended."""
        ...


@dataclass
class ServedModel:
    """One model that clients can name; where a run is followed, its name follows the stage."""

    id: str
    """RUN/stage of the newest weights, or RUN/stage@step where that step was asked for."""
    tokenizer: Tokenizer
    context_tokens: int
    """Most tokens of a prompt and its answer together."""
    generate: Generate
    step: int | None = None
    """Of the newest weights that were heard of."""
    newest: Callable[[], Awaitable[str | None]] = unchanged
    """Asks of which checkpoint an engine has its weights now; None where none answers."""
    works: Callable[[], Awaitable[bool]] = always
    """Asks whether an engine would answer now."""
    names: set[str] = field(default_factory=set)
    """By which it was asked for at the start, or was known since: clients may still use them."""
    created: int = field(default_factory=lambda: int(time.time()))

    def take_up(self, checkpoint: str | None) -> None:
        """Hear of which checkpoint the weights are now."""
        if checkpoint is None:
            return
        stage, _, step = checkpoint.partition("@")
        self.step = int(step)
        if "@" not in self.id and stage != self.id:
            self.names.add(self.id)
            self.id = stage
