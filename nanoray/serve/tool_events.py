"""Tool calls of an answer, told beside its text: the extension field `tool_events`.

They are not OpenAI's `tool_calls`, because those ask the client to run something, and the
calculator has run already.
"""

from dataclasses import dataclass, field
from typing import Any

from nanoray.inference.sequence import TokenOutput
from nanoray.inference.tools import Part
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
            ended = self.finish()
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
            return self.finish()
        return []

    def finish(self) -> list[dict[str, Any]]:  # Any: JSON
        """Give the event of the call that is under way, if any."""
        call, self.call = self.call, None
        if call is None:
            return []
        self.num_events += 1
        status = "done" if call.is_forced else "unverified" if call.has_output else "failed"
        return [
            {
                "id": f"{self.name}-{self.num_events}",
                "name": "python",
                "input": call.code.decode(errors="replace"),
                "output": call.output.decode(errors="replace") if call.has_output else None,
                "status": status if call.is_closed else "unfinished",
                "offset": call.offset,
            }
        ]
