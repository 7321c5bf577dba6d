"""Gradio's chat: what goes into a bubble comes out of it, and what is kept is found again."""

import asyncio
import json
from typing import Any

import gradio as gr
import pytest

from nanoray.serve.bubbles import as_bubbles, as_messages
from nanoray.serve.chat_client import ChatClient
from nanoray.serve.conversation import STORAGE_KEY, Conversation, ExactChatbot
from nanoray.serve.ui import ChatPage

TEXTS = [
    "def f():\n    return 1",
    "\n\n  first\n\n\tsecond \n",
    "a &lt;b> &amp; <img src=x onerror=alert(1)> `<b>`",
    "",
]


def through(chatbot: gr.Chatbot, bubbles: list[dict[str, Any]]) -> Any:
    """Send bubbles to the browser and back, by Gradio's own ways and as JSON."""
    shown = json.loads(chatbot.postprocess(bubbles).model_dump_json())  # type: ignore[arg-type]
    return chatbot.preprocess(chatbot.data_model.model_validate(shown))


def build() -> gr.Blocks:
    async def run() -> gr.Blocks:  # without a loop that runs, Gradio makes some and leaves them
        return ChatPage(ChatClient("http://127.0.0.1:9"), ["m"], 200).build()

    return asyncio.run(run())


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_the_page_as_it_was_said(text: str) -> None:
    chatbot = ExactChatbot(allow_tags=False)
    said = [{"role": "user", "content": text}]

    once = through(chatbot, said)
    again = through(chatbot, once)

    assert as_messages(once) == said
    assert as_messages(again) == said


def test_an_answer_with_calls_comes_back_as_the_server_gave_it() -> None:
    content = "using Python:\n\n\n\nPython gives\n    84 "
    calls = [
        ("12*(3+4)", "84", "done"),
        ("'`<b>`'.count('`')", " 2\n", "unverified"),
        ("", None, "failed"),
        ("2*3*4", "", "done"),
        ("50*60", "30", "unfinished"),
    ]
    events = [
        {"id": "x", "input": code, "output": output, "status": status, "offset": 15 + number}
        for number, (code, output, status) in enumerate(calls)
    ]
    user = {"role": "user", "content": "Q"}

    back = through(ExactChatbot(), [user, *as_bubbles(content, events), user])

    answer = as_messages(back)[1]
    assert answer["content"] == content
    assert answer["tool_events"] == [
        {name: event[name] for name in ("input", "output", "status", "offset")} for event in events
    ]


def test_the_browser_gets_no_tag_but_in_code() -> None:
    bubbles = [
        {"role": "user", "content": "<img src=x> `<b>`"},
        {"role": "assistant", "content": "1", "metadata": {"title": "python: '<b>'*2*3"}},
    ]

    shown = ExactChatbot().postprocess(bubbles).model_dump()  # type: ignore[arg-type]

    assert shown[0]["content"][0]["text"] == "&lt;img src=x> `<b>`"
    assert shown[1]["metadata"]["title"] == "python: ` '<b>'*2*3 `"


def test_a_kept_conversation_that_is_opened_is_shown_as_others_are() -> None:
    page = build()
    [opening] = [fn for fn in page.fns.values() if fn.name == "_load_conversation"]
    kept = gr.Chatbot(value=[{"role": "user", "content": "  <b>\n  x"}])

    opened = asyncio.run(page.postprocess_data(opening, [0, kept], None))

    [message] = opened[1]["value"]
    assert message["content"] == [{"text": "  &lt;b>\n  x", "type": "text"}]


def test_each_build_finds_what_another_has_kept() -> None:
    def stores() -> list[Any]:
        components = build().get_config_file()["components"]
        return [each["props"] for each in components if each["type"] == "browserstate"]

    [first], [second] = stores(), stores()

    assert first["storage_key"] == second["storage_key"] == STORAGE_KEY
    assert first["secret"] == second["secret"]


def test_an_edited_text_is_what_its_editor_meant() -> None:
    page = build()
    [edit] = [fn for fn in page.fns.values() if fn.name == "_edit_message"]
    data = gr.EditData(None, {"index": 0, "value": "  &lt;b> x", "previous_value": "&lt;b>"})

    said = edit.fn([{"role": "user", "content": "<b>"}], data)  # type: ignore[misc]

    assert isinstance(edit.fn.__self__, Conversation)  # type: ignore[union-attr]
    assert said == ([], [], "  <b> x")
