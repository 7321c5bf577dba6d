"""What the page sends to the model, and what is left of it when the server was started anew."""

import json
from contextlib import closing
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.browser.visit import Visit, wait_until
from tests.chat_run import WEATHER
from tests.serve.server import LocalServer, serve

CODE = "def f():\n    return '&lt;' <b\n\n    <i>"


def sent(server: LocalServer) -> list[dict[str, Any]]:
    """Read the messages of the newest request."""
    return json.loads(server.recorder.bodies[-1])["messages"]


def test_the_history_is_what_was_said(visit: Visit, page_server: LocalServer) -> None:
    visit.ask("What is 12*(3+4)?")
    visit.wait_for_answer("It is 84.")

    asked = len(page_server.recorder.bodies)
    visit.ask(CODE)
    wait_until(lambda: len(page_server.recorder.bodies) > asked)
    visit.wait_for_the_end()
    _, answer, question = sent(page_server)

    [event] = answer["tool_events"]
    assert answer["content"] == "Let me see. It is 84."
    assert (event["output"], event["offset"], event["status"]) == ("84", 12, "done")
    assert question["content"] == CODE


def test_a_text_keeps_its_shape_in_its_bubble_on_retry_and_when_edited(
    visit: Visit, page_server: LocalServer
) -> None:
    visit.ask(CODE)
    visit.wait_for_the_end()
    shown = visit.page.locator(".user.message").first.inner_text()

    asked = len(page_server.recorder.bodies)
    visit.page.get_by_label("Retry").last.click()
    wait_until(lambda: len(page_server.recorder.bodies) > asked)
    visit.wait_for_the_end()
    again = sent(page_server)
    visit.page.get_by_label("Edit").last.click()
    editor = visit.page.locator("textarea.edit-textarea, .edit-textarea textarea").first
    editor.fill(editor.input_value() + "!")
    visit.page.get_by_label("Submit").first.click()
    wait_until(lambda: len(page_server.recorder.bodies) > asked + 1)
    visit.wait_for_the_end()

    assert shown.startswith("def f():\n    return '&lt;' <b")
    assert "<i>" in shown
    assert again == [{"role": "user", "content": CODE}]
    assert sent(page_server) == [{"role": "user", "content": CODE + "!"}]


@pytest.mark.slow
def test_conversations_are_found_again_when_the_server_was_started_anew(browser: Any) -> None:
    with serve(ApiSettings(), page=True) as first, closing(Visit(browser, first.url)) as visit:
        visit.be_greedy()
        visit.ask("What color is the sky?")
        visit.wait_for_answer(WEATHER)
        visit.page.wait_for_timeout(1_000)  # it is kept a moment later
        kept = visit.context.storage_state()
    port = int(first.url.rpartition(":")[2])
    with (
        serve(ApiSettings(), page=True, port=port) as second,
        closing(Visit(browser, second.url, storage_state=kept)) as visit,
    ):
        visit.page.get_by_text("What color is the sky?").first.click()
        visit.page.locator(".bot.message", has_text=WEATHER).wait_for()

        visit.ask("Count")
        wait_until(lambda: bool(second.recorder.bodies))

    assert [message["content"] for message in sent(second)] == [
        "What color is the sky?",
        WEATHER,
        "Count",
    ]
