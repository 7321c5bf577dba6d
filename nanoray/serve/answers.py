"""Token outputs to the choices of an answer, whole or in pieces."""

from dataclasses import dataclass, field
from typing import Any

from nanoray.inference.sequence import FinishReason, TokenLogprobs, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.errors import APIError
from nanoray.serve.tool_events import ToolEvents
from nanoray.text.tokenizer import Tokenizer

Json = dict[str, Any]  # Any: JSON


@dataclass
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def count(self, output: TokenOutput) -> None:
        """Count one token of an answer."""
        self.completion_tokens += 1
        # The other samples find their common prompt, which is counted once, in the cache.
        self.cached_tokens += output.cached_tokens if output.sample == 0 else 0

    def to_json(self) -> Json:
        """Give it in OpenAI's words."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass
class Delta:
    """What one token added to a choice of a chat answer."""

    content: str = ""
    logprobs: list[Json] = field(default_factory=list)
    tool_events: list[Json] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class ChatChoice:
    """One answer of a chat, as it grows."""

    index: int
    tokenizer: Tokenizer
    events: ToolEvents
    content: str = ""
    logprobs: list[Json] = field(default_factory=list)
    tool_events: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, output: TokenOutput) -> Delta:
        """Take the next token; gives what it added."""
        delta = Delta(output.text)
        delta.tool_events = self.events.observe(output, len(self.content) + len(delta.content))
        if output.logprobs is not None and output.part is Part.TEXT:
            delta.logprobs = [chat_logprobs(output.logprobs, self.tokenizer)]
        if output.finish_reason is not None:
            delta.tool_events += self.events.finish()
            delta.finish_reason = finish_reason(output)
        return self._grow(delta)

    def cut_off(self) -> Delta:
        """End an answer for which there is no more time."""
        return self._grow(Delta(tool_events=self.events.finish(), finish_reason="length"))

    def _grow(self, delta: Delta) -> Delta:
        self.content += delta.content
        self.logprobs += delta.logprobs
        self.tool_events += delta.tool_events
        self.finish_reason = delta.finish_reason
        return delta


def finish_reason(output: TokenOutput) -> str:
    """Give OpenAI's word for why an answer ended.

    Raises:
        APIError: it ended because the model failed.
    """
    if output.finish_reason is FinishReason.ERROR:
        raise APIError(500, "The model gave no finite numbers for this prompt.", code="model_error")
    return str(output.finish_reason)


def chat_logprobs(known: TokenLogprobs, tokenizer: Tokenizer) -> Json:
    """Give the log-probabilities of one token as chat answers have them."""

    def entry(token: int, logprob: float) -> Json:
        content = tokenizer.token_bytes(token)
        text = content.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(content)}

    top = [entry(token, logprob) for token, logprob in known.top]
    return {**entry(known.token, known.logprob), "top_logprobs": top}


@dataclass
class CompletionLogprobs:
    """Log-probabilities of a plain completion: four lists of one length."""

    tokenizer: Tokenizer
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    offset: int = 0

    def add(self, token: int, known: TokenLogprobs | None) -> None:
        """Add a token; nothing is known of the very first one."""
        text = self.tokenizer.token_bytes(token).decode(errors="replace")
        self.tokens.append(text)
        self.text_offset.append(self.offset)
        self.offset += len(text)
        if known is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        top: dict[str, float] = {}
        for other, logprob in (*known.top, (known.token, known.logprob)):
            # Two tokens that are no characters alone have one text: the likelier one keeps it.
            top.setdefault(self.tokenizer.token_bytes(other).decode(errors="replace"), logprob)
        self.token_logprobs.append(known.logprob)
        self.top_logprobs.append(top)

    def take(self) -> Json:
        """Give what was added since the last call."""
        taken = {
            name: getattr(self, name)
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return taken
