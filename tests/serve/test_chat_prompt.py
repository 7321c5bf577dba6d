"""Messages to ids."""

from typing import Any

import pytest

from nanoray.serve.chat_prompt import chat_prompt
from nanoray.serve.errors import APIError
from nanoray.text.chat import render_for_completion
from nanoray.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer([])
USER: dict[str, Any] = {"role": "user", "content": "U"}


def test_a_conversation_is_rendered_as_in_training() -> None:
    messages = [{"role": "system", "content": "S"}, USER]

    ids = chat_prompt(messages, TOKENIZER)

    # nanochat.md 4.5: the golden ids of a byte vocabulary.
    assert ids == [256, 257, 83, 10, 10, 85, 258, 259]


def test_tool_events_become_the_parts_they_came_from() -> None:
    event = {"input": "1+1", "output": "2", "offset": 1}
    messages = [USER, {"role": "assistant", "content": "AB", "tool_events": [event]}, USER]
    parts = [
        {"type": "text", "text": "A"},
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "B"},
    ]

    ids = chat_prompt(messages, TOKENIZER)

    trained: list[dict[str, Any]] = [USER, {"role": "assistant", "content": parts}, USER]
    last = {"role": "assistant", "content": ""}
    assert ids == render_for_completion([*trained, last], TOKENIZER)


@pytest.mark.parametrize(
    ("output", "told"),
    [("30", "A<|python_start|>50*60<|python_end|>"), (None, "A")],
)
def test_what_is_cut_off_is_not_told_as_if_it_were_whole(output: str | None, told: str) -> None:
    event = {"input": "50*60", "output": output, "offset": 1, "status": "unfinished"}

    ids = chat_prompt(
        [USER, {"role": "assistant", "content": "A", "tool_events": [event]}, USER], TOKENIZER
    )

    assert f"<|assistant_start|>{told}<|assistant_end|>" in TOKENIZER.decode(ids)


def test_long_conversations_are_not_cut() -> None:
    ids = chat_prompt([{"role": "user", "content": "x" * 5_000}], TOKENIZER)

    assert len(ids) == 5_004


def test_content_may_be_a_list_of_texts_and_developer_is_a_word_for_system() -> None:
    parts = [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]

    ids = chat_prompt(
        [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}], TOKENIZER
    )

    assert TOKENIZER.decode_bytes(ids) == b"S\n\nUV"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages is empty"),
        ([5], r"messages\[0\] must be an object"),
        ([{}], r"messages\[0\].role must be one of"),
        ([{"role": "tool", "content": "x"}], "role must be one of system, user, assistant"),
        ([{"role": "user"}], r"messages\[0\].content must be a text"),
        ([{"role": "user", "content": 5}], "content must be a text"),
        ([{"role": "user", "content": []}], "content must be a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "parts of type text only"),
        ([USER, USER], "take turns"),
        ([{"role": "assistant", "content": "x"}, USER], "the user first"),
        ([USER, {"role": "assistant", "content": "x"}], "last message must be the user's"),
        ([{"role": "system", "content": "x"}], "last message must be the user's"),
        ([USER, {"role": "assistant", "content": "", "tool_calls": [1]}, USER], "tool calls"),
        ([USER, {"role": "assistant", "content": "", "tool_events": 5}, USER], "must be a list"),
        ([USER, {"role": "assistant", "content": "", "tool_events": [5]}, USER], "must be texts"),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_events": [{"input": "", "output": "", "offset": -1}],
                },
                USER,
            ],
            "offset must be a number",
        ),
        ([USER] * 3_000, "2000 are the most"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(messages: list[Any], said: str) -> None:
    with pytest.raises(APIError, match=said) as caught:
        chat_prompt(messages, TOKENIZER)

    assert (caught.value.status, caught.value.param) == (400, "messages")
