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
    """What one step of an engine brought to one request."""

    outputs: list[TokenOutput]
    replica: str
    """Whose engine it was."""
    kv_usage: float
    """Share of that engine's cache that is in use, 0 to 1."""


async def engine_steps(
    thread: EngineThread, replica: str, prompt: list[int], params: SamplingParams
) -> AsyncIterator[Step]:
    """Continue a prompt by an engine of this process."""
    async for outputs in thread.generate(prompt, params):
        yield Step(outputs, replica, thread.engine.blocks.usage)


async def engine_works(thread: EngineThread, stuck_seconds: float) -> bool:
    """Say whether an engine of this process has neither failed nor been silent for so long."""
    return thread.failure is None and thread.seconds_since_beat() <= stuck_seconds


async def always() -> bool:
    """Say yes."""
    return True


async def unchanged() -> None:
    """Know of no other step than the one at the start."""


class Generate(Protocol):
    """Continues a prompt; closing the iterator frees the place."""

    def __call__(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        """Yield steps until every sample has ended."""
        ...


@dataclass
class ServedModel:
    """One model that clients can name."""

    id: str
    """RUN/stage, or RUN/stage@step where that step was asked for."""
    tokenizer: Tokenizer
    context_tokens: int
    """Most tokens of a prompt and its answer together."""
    generate: Generate
    step: int | None = None
    """The checkpoint that was loaded when the server started."""
    newest_step: Callable[[], Awaitable[int | None]] = unchanged
    """Asks of which checkpoint an engine has its weights now; None where none answers."""
    works: Callable[[], Awaitable[bool]] = always
    """Asks whether an engine would answer now."""
    created: int = field(default_factory=lambda: int(time.time()))
