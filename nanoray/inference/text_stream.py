"""Token bytes in, text out: only whole characters, and nothing that may belong to a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Text of one continuation as it grows; what `add` and `finish` give, joined, is all of it."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False
        """A stop string was found; it and all that follows are left out."""

    def add(self, token_bytes: bytes) -> str:
        """Take the bytes of the next token; give the text that is now certain."""
        return self._advance(self._decoder.decode(token_bytes))

    def finish(self) -> str:
        """Give what was held back; bytes of an unfinished character become U+FFFD."""
        text = self._advance(self._decoder.decode(b"", final=True)) + self._held
        self._held = ""
        return text

    def _advance(self, new: str) -> str:
        """Add text, and split off what no stop string can claim any more."""
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """Give how many characters at the end of `text` are the beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
