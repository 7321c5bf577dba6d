"""Tool calls of an answer, told beside its text: the extension field `tool_events`.

They are not OpenAI's `tool_calls`, because those ask the client to run something, and the
calculator has run already.
"""

from dataclasses import dataclass, field
from typing import Any

from nanoray.inference.sequence import TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.call_status import CallStatus
from nanoray.text.tokenizer import Tokenizer


@dataclass
class Call:
    """A call of the calculator, as far as it has been written."""

    offset: int
    code: bytes = b""
    output: bytes = b""
    is_closed: bool = False
    """The model has ended the code."""
    has_output: bool = False
    is_forced: bool = False
    """The output came from the calculator, not from the model."""
    is_whole: bool = False
    """The output has come to its end, or something else stands where it would have begun."""

    @property
    def status(self) -> CallStatus:
        """How it went."""
        if not self.is_closed or not self.is_whole:
            return CallStatus.UNFINISHED
        if not self.has_output:
            return CallStatus.FAILED
        return CallStatus.DONE if self.is_forced else CallStatus.UNVERIFIED


@dataclass
class ToolEvents:
    """Follows the tokens of one answer, and gives an event when a call is over."""

    tokenizer: Tokenizer
    name: str
    """The answer's, from which those of its events are made."""
    num_events: int = 0
    call: Call | None = None
    special: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.special = self.tokenizer.special_ids

    def observe(self, output: TokenOutput, offset: int) -> list[dict[str, Any]]:  # Any: JSON
        """Take the next token, with the length of the text before it; gives what is over."""
        call, token = self.call, output.token
        if token == self.special["<|python_start|>"]:
            ended = self._finish_before(token)
            self.call = Call(offset)
            return ended
        if call is None:
            return []
        if output.part is Part.PYTHON:
            call.code += self.tokenizer.decode_bytes([token])
        elif token == self.special["<|python_end|>"]:
            call.is_closed = True
        elif token == self.special["<|output_start|>"]:
            call.has_output, call.is_forced = True, output.forced
        elif output.part is Part.OUTPUT:
            call.output += self.tokenizer.decode_bytes([token])
        elif call.is_closed:
            return self._finish_before(token)
        return []

    def _finish_before(self, token: int) -> list[dict[str, Any]]:  # Any: JSON
        """Give the event of a call behind which something else stands."""
        if self.call is not None:
            ended = token == self.special["<|output_end|>"]
            self.call.is_whole = ended or not self.call.has_output
        return self.finish()

    def finish(self) -> list[dict[str, Any]]:  # Any: JSON
        """Give the event of the call that is under way, if any."""
        call, self.call = self.call, None
        if call is None:
            return []
        self.num_events += 1
        return [
            {
                "id": f"{self.name}-{self.num_events}",
                "name": "python",
                "input": call.code.decode(errors="replace"),
                "output": call.output.decode(errors="replace") if call.has_output else None,
                "status": call.status,
                "offset": call.offset,
            }
        ]
