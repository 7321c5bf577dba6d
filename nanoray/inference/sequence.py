"""One continuation in the making, and what is said of each of its tokens."""

from dataclasses import dataclass, field
from enum import StrEnum

from nanoray.inference.blocks import BlockTable
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.text_stream import TextStream
from nanoray.inference.tools import Part, ToolUse


class FinishReason(StrEnum):
    """Why a continuation ended, in the words of the OpenAI API."""

    STOP = "stop"
    """The model ended its turn, or a stop string was found."""
    LENGTH = "length"
    """max_tokens were generated, or the context is full."""
    ABORT = "abort"
    """Whoever asked for it does not want it any more."""
    ERROR = "error"
    """The model gave no finite numbers."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities, in nats, of one token and of those that were most likely in its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, log-probability) of the most likely ones, the likeliest first."""


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """What one more token of a continuation brought."""

    request: int
    """What `Engine.add` gave."""
    sample: int
    """Which continuation of the request, from 0."""
    token: int
    part: Part
    forced: bool = False
    """A tool put it there."""
    text: str = ""
    """Text of the continuation that became certain with it."""
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    """With the first token, if asked for: of each token of the prompt; None for the very first."""
    cached_tokens: int = 0
    """With the first token: how many tokens of the prompt came from the cache."""
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and its continuation so far; it owns blocks of the cache while it runs."""

    request: int
    sample: int
    tokens: list[int]
    """Prompt and continuation."""
    num_prompt: int
    params: SamplingParams
    text: TextStream
    tool: ToolUse | None = None
    leader: "Sequence | None" = None
    """Sample 0 of the same request: its prompt is computed first, and the others share it."""
    table: BlockTable = field(default_factory=BlockTable)
    num_computed: int = 0
    """Tokens whose keys and values are in the cache."""
    forced: list[int] = field(default_factory=list)
    """Tokens that a tool puts next."""
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the cache when it began."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None

    @property
    def num_generated(self) -> int:
        """Tokens of the continuation."""
        return len(self.tokens) - self.num_prompt

    @property
    def is_complete(self) -> bool:
        """Whether it has all the tokens that were asked for."""
        return self.num_generated >= self.params.max_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are to be computed before the next one can be drawn."""
        return len(self.tokens) - self.num_computed

    @property
    def is_prompt_computed(self) -> bool:
        """Whether other sequences can find the prompt's blocks in the cache."""
        return self.num_computed >= self.num_prompt or self.finish_reason is not None
