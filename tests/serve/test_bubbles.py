"""Answers as bubbles, and back."""

from typing import Any

import pytest

from nanoray.serve.bubbles import as_bubbles, as_messages, error_bubble

EVENT = {"id": "a-1", "input": "1+1", "output": "2", "offset": 3, "status": "done"}
FAILED = {"id": "a-2", "input": "2**9", "output": None, "offset": 3, "status": "failed"}
CUT = {"id": "a-3", "input": "50*60", "output": "30", "offset": 6, "status": "unfinished"}


@pytest.mark.parametrize("events", [[], [EVENT], [EVENT, FAILED], [EVENT, CUT]])
def test_bubbles_go_back_to_the_message_they_came_from(events: list[dict[str, Any]]) -> None:
    question = {"role": "user", "content": "Q"}

    bubbles = as_bubbles("abcdef", events)
    back = as_messages([question, *bubbles, question])

    answer = back[1]
    assert answer["content"] == "abcdef"
    assert answer["tool_events"] == [
        {name: value for name, value in event.items() if name != "id"} for event in events
    ]
    assert [message["role"] for message in back] == ["user", "assistant", "user"]


def test_a_call_is_a_closed_block_between_the_texts() -> None:
    before, call, after = as_bubbles("abcdef", [EVENT])

    assert (before["content"], after["content"]) == ("abc", "def")
    assert call["content"] == "2"
    assert call["metadata"] == {"title": "python: 1+1", "id": "a-1", "status": "done"}


def test_a_call_that_is_not_done_says_so_beside_its_title() -> None:
    *_, call = as_bubbles("abcdef", [CUT])

    assert (call["content"], call["metadata"]["log"]) == ("30", "unfinished")


def test_errors_and_questions_without_answer_are_not_told_to_the_model() -> None:
    user = {"role": "user", "content": "Q"}

    messages = as_messages([user, error_bubble("gone"), user])

    assert messages == [user]


def test_a_system_prompt_comes_first_and_an_empty_one_not_at_all() -> None:
    user = {"role": "user", "content": [{"type": "text", "text": "Q"}]}

    assert as_messages([user], "S")[0] == {"role": "system", "content": "S"}
    assert as_messages([user], "  ") == [{"role": "user", "content": "Q"}]


def test_an_answer_that_has_not_begun_is_an_empty_bubble() -> None:
    assert as_bubbles("", []) == [{"role": "assistant", "content": ""}]
