"""Tool use: where in its turn a model is, and what the tool puts there.

The model writes `<|python_start|>12*(3+4)<|python_end|>`, and `<|output_start|>84<|output_end|>` is
put after it as if it had written that too. (State machine: nanochat's engine.) Training data,
evals, RL and serving use the same one.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from nanoray.inference.calculator import calculate
from nanoray.text.tokenizer import Tokenizer


class Part(StrEnum):
    """To which part of an assistant's turn a token belongs; the names of the parts in chat.py."""

    TEXT = "text"
    PYTHON = "python"
    OUTPUT = "python_output"
    MARKER = "marker"
    """A special token: it opens or closes a part, and is no text of any."""


@dataclass
class ToolUse:
    """The tool state of one sequence; sees each of its tokens once, in order."""

    tokenizer: Tokenizer
    part: Part = Part.TEXT
    """The part that the next ordinary token belongs to."""
    expression: list[int] = field(default_factory=list)
    """Ids written since the last `<|python_start|>`."""

    def observe(self, token: int) -> tuple[Part, list[int]]:
        """Take the next token; give its part, and the ids that must follow it."""
        special = self.tokenizer.special_ids
        is_special = token >= self.tokenizer.bos_id
        part = Part.MARKER if is_special else self.part
        if token == special["<|python_start|>"]:
            self.part, self.expression = Part.PYTHON, []
        elif self.part is Part.PYTHON and token != special["<|python_end|>"]:
            self.expression.append(token)  # other special tokens too: no expression then (nanochat)
        elif self.part is Part.PYTHON:
            self.part = Part.TEXT
            return part, self._answer()
        elif token == special["<|output_start|>"]:
            self.part = Part.OUTPUT
        elif token == special["<|output_end|>"]:
            self.part = Part.TEXT
        return part, []

    def _answer(self) -> list[int]:
        """Compute the expression, and frame its value; nothing if there is none."""
        if not self.expression:
            return []
        result = calculate(self.tokenizer.decode(self.expression))
        if result is None:
            return []
        special = self.tokenizer.special_ids
        value = self.tokenizer.encode(result)
        return [special["<|output_start|>"], *value, special["<|output_end|>"]]
