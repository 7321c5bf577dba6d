"""Token outputs to the choices of an answer, whole or in pieces."""

import codecs
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
    """What one token, or some, added to a choice of a chat answer."""

    content: str = ""
    logprobs: list[Json] = field(default_factory=list)
    tool_events: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    def extend(self, later: "Delta") -> None:
        """Add what came after it."""
        self.content += later.content
        self.logprobs += later.logprobs
        self.tool_events += later.tool_events
        self.finish_reason = later.finish_reason


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
class TextPlaces:
    """Follows the tokens of a text, to tell where in it each of them begins."""

    place: int = 0
    """How many characters are whole so far."""
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def add(self, token_bytes: bytes) -> int:
        """Take the bytes of the next token; gives where it begins, or its character does."""
        begun = self.decoder.getstate()[0]
        if begun and not may_continue(begun, token_bytes[:1]):
            self.end()
        place = self.place
        self.place += len(self.decoder.decode(token_bytes))
        return place

    def end(self) -> int:
        """Take what no character goes on behind: a begun one becomes U+FFFD. Gives the place."""
        self.place += len(self.decoder.decode(b"", final=True))
        return self.place


def may_continue(begun: bytes, byte: bytes) -> bool:
    """Say whether a byte belongs to a character that has begun."""
    try:
        codecs.utf_8_decode(begun + byte, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


@dataclass
class CompletionLogprobs:
    """Log-probabilities of a plain completion: four lists of one length."""

    tokenizer: Tokenizer
    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)
    places: TextPlaces = field(default_factory=TextPlaces)

    def add(self, token: int, known: TokenLogprobs | None) -> None:
        """Add a token; nothing is known of the very first one."""
        self.tokens.append(self.tokenizer.token_bytes(token).decode(errors="replace"))
        in_text = self.tokenizer.decode_bytes([token])  # a special token is not in the text
        self.text_offset.append(self.places.add(in_text) if in_text else self.places.end())
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

    def cut(self, length: int) -> None:
        """End at the end of the text, which leaves out a stop string and all behind it."""
        self.text_offset = [min(place, length) for place in self.text_offset]

    def take(self) -> Json:
        """Give what was added since the last call."""
        taken = {
            name: getattr(self, name)
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        self.tokens, self.token_logprobs, self.top_logprobs, self.text_offset = [], [], [], []
        return taken
