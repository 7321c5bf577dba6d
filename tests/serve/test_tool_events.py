"""Calls of the calculator, told beside the text."""

from typing import Any

import pytest

from nanoray.inference.sequence import TokenOutput
from nanoray.inference.tools import ToolUse
from nanoray.serve.tool_events import ToolEvents
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])
SPECIAL = {name.strip("<|>"): value for name, value in TOKENIZER.special_ids.items()}


def told(*pieces: str, forced: bool = True) -> list[dict[str, Any]]:
    """Tell the events of an answer; pieces in angle brackets are special tokens."""
    tool, events, given = ToolUse(TOKENIZER), ToolEvents(TOKENIZER, "answer"), []
    offset = 0
    for piece in pieces:
        is_output = piece in ("<output_start>", "<output_end>")
        is_special = piece.startswith("<")
        for token in [SPECIAL[piece.strip("<>")]] if is_special else TOKENIZER.encode(piece):
            part, _ = tool.observe(token)
            output = TokenOutput(
                request=0, sample=0, token=token, part=part, forced=forced and is_output
            )
            given += events.observe(output, offset)
            offset += part == "text"
    return given + events.finish()


PYTHON = ("<python_start>", "1+1", "<python_end>")


@pytest.mark.parametrize(
    ("pieces", "forced", "output", "status"),
    [
        ((*PYTHON, "<output_start>", "2", "<output_end>", "B"), True, "2", "done"),
        ((*PYTHON, "<output_start>", "3", "<output_end>", "B"), False, "3", "unverified"),
        ((*PYTHON, "B"), True, None, "failed"),
        ((*PYTHON, "<assistant_end>"), True, None, "failed"),
        (PYTHON, True, None, "unfinished"),  # nobody knows: the answer ended before the output
        ((*PYTHON, "<output_start>", "30"), True, "30", "unfinished"),
        ((*PYTHON, "<output_start>", "30"), False, "30", "unfinished"),
        ((*PYTHON, "<output_start>", "2", "<output_end>"), True, "2", "done"),
        (PYTHON[:2], True, None, "unfinished"),
    ],
)
def test_a_call_is_told_with_how_it_went(
    pieces: tuple[str, ...], forced: bool, output: str | None, status: str
) -> None:
    [event] = told("AA", *pieces, forced=forced)

    assert event == {
        "id": "answer-1",
        "name": "python",
        "input": "1+1",
        "output": output,
        "status": status,
        "offset": 2,
    }


def test_every_call_of_an_answer_is_told() -> None:
    events = told(*PYTHON, "<output_start>", "2", "<output_end>", "x", *PYTHON, *PYTHON)

    assert [event["id"] for event in events] == ["answer-1", "answer-2", "answer-3"]
    assert [event["offset"] for event in events] == [0, 1, 1]
    assert [event["status"] for event in events] == ["done", "failed", "unfinished"]


def test_an_answer_without_calls_has_no_events() -> None:
    assert told("just text", "<assistant_end>") == []
