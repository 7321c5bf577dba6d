"""The tool state of a turn, token by token."""

import pytest

from nanoray.inference.tools import Part, ToolUse
from nanoray.text.chat import render
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])
SPECIAL = {name.strip("<|>"): value for name, value in TOKENIZER.special_ids.items()}


def observe(tokens: list[int]) -> tuple[list[Part], list[list[int]]]:
    """Show tokens to a new turn; gives the part of each, and what must follow it."""
    tool = ToolUse(TOKENIZER)
    seen = [tool.observe(token) for token in tokens]
    return [part for part, _ in seen], [following for _, following in seen]


def python(code: str) -> list[int]:
    return [SPECIAL["python_start"], *TOKENIZER.encode(code), SPECIAL["python_end"]]


def test_an_expression_is_followed_by_its_value_in_the_frame_of_the_training_data() -> None:
    tokens = python("12*(3+4)")

    _, following = observe(tokens)

    parts = [{"type": "python", "text": "12*(3+4)"}, {"type": "python_output", "text": "84"}]
    ids, mask = render(
        [{"role": "user", "content": ""}, {"role": "assistant", "content": parts}], TOKENIZER
    )
    trained = ids[ids.index(SPECIAL["assistant_start"]) + 1 : -1]
    assert tokens + following[-1] == trained
    assert [following[i] for i in range(len(tokens) - 1)] == [[]] * (len(tokens) - 1)
    assert mask[-1 - len(following[-1]) : -1] == [0] * len(following[-1])


def test_each_token_has_its_part() -> None:
    tokens = [65, *python("1"), SPECIAL["output_start"], 49, SPECIAL["output_end"], 66]

    parts, _ = observe(tokens)

    assert parts == [
        *(Part.TEXT, Part.MARKER, Part.PYTHON, Part.MARKER),
        *(Part.MARKER, Part.OUTPUT, Part.MARKER, Part.TEXT),
    ]


@pytest.mark.parametrize(
    "tokens",
    [
        python(""),
        python("2**3"),
        python("import os"),
        [SPECIAL["python_end"]],
        [49, SPECIAL["python_end"]],
        [SPECIAL["python_start"], 49, SPECIAL["user_start"], SPECIAL["python_end"]],
        [SPECIAL["python_start"], 0xFF, SPECIAL["python_end"]],
    ],
)
def test_what_has_no_value_is_followed_by_nothing(tokens: list[int]) -> None:
    _, following = observe(tokens)

    assert following == [[]] * len(tokens)


def test_a_second_start_begins_the_expression_anew() -> None:
    _, following = observe([SPECIAL["python_start"], 57, *python("1+1")])

    assert following[-1] == [SPECIAL["output_start"], ord("2"), SPECIAL["output_end"]]


def test_a_turn_can_use_the_tool_more_than_once() -> None:
    _, following = observe([*python("1+1"), *python("2+2")])

    assert [TOKENIZER.decode_bytes(ids) for ids in following if ids] == [b"2", b"4"]
