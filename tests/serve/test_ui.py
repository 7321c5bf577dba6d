"""What the chat page asks and shows; how it looks and feels: tests/browser."""

import asyncio
import json
from typing import Any

import gradio as gr
import pytest

from nanoray.serve.bubbles import ERROR_TITLE
from nanoray.serve.chat_client import ChatClient
from nanoray.serve.ui import ChatPage
from tests.chat_run import WEATHER
from tests.serve.server import MODEL, LocalServer

CONTROLS = (MODEL, "", 0, 50, 100)
QUESTION = "What color is the sky?"


def last(page: ChatPage, message: str, history: list[dict[str, Any]]) -> tuple[Any, str]:
    """Ask the page; gives the bubbles and the speed at the end."""

    async def run() -> tuple[Any, str]:
        return [shown async for shown in page.respond(message, history, *CONTROLS)][-1]

    return asyncio.run(run())


@pytest.fixture
def page(server: LocalServer) -> ChatPage:
    return ChatPage(ChatClient(server.url), [MODEL], 200)


def test_an_answer_is_bubbles_and_its_speed(page: ChatPage) -> None:
    bubbles, speed = last(page, QUESTION, [])

    assert bubbles == [{"role": "assistant", "content": WEATHER}]
    assert "tokens/s" in speed


def test_a_tool_call_is_a_block(page: ChatPage) -> None:
    bubbles, _ = last(page, "What is 12*(3+4)?", [])

    assert [bubble["content"] for bubble in bubbles] == ["Let me see. ", "84", "It is 84."]
    assert bubbles[1]["metadata"]["title"] == "python: 12*(3+4)"


def test_the_history_goes_with_the_question(page: ChatPage, server: LocalServer) -> None:
    history: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "metadata": None},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}], "metadata": {}},
    ]

    last(page, QUESTION, history)

    sent = json.loads(server.recorder.bodies[-1])["messages"]
    assert [message["content"] for message in sent] == ["a", "b", QUESTION]


def test_what_the_server_refuses_is_shown_where_the_answer_should_be(page: ChatPage) -> None:
    bubbles, _ = last(page, "word " * 2_000, [])

    assert bubbles[-1]["metadata"]["title"] == ERROR_TITLE
    assert "maximum context length" in bubbles[-1]["content"]


def test_two_models_answer_one_question(page: ChatPage) -> None:
    async def run() -> Any:
        controls = [MODEL, MODEL, "", 0, 50, 100]
        return [shown async for shown in page.compare(QUESTION, [], [], controls)][-1]

    message, left, right = asyncio.run(run())

    assert message == ""
    for side in (left, right):
        assert [bubble["content"] for bubble in side] == [QUESTION, WEATHER]


def test_the_page_loads_nothing_from_elsewhere(page: ChatPage) -> None:
    async def build() -> gr.Blocks:  # without a loop that runs, Gradio makes some and leaves them
        return page.build()

    built = asyncio.run(build())

    assert built.analytics_enabled is False
    assert "https://fonts" not in json.dumps(built.get_config_file(), default=str)
