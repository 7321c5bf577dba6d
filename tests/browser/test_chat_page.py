"""The chat page as its user drives it."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.chat_run import COUNTING, EMOJI, WEATHER
from tests.serve.server import LocalServer, serve

WAIT = 30_000
"""Milliseconds; a busy machine is slow."""


class Visit:
    """One visitor's page, and what it did behind their back."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:  # Any: playwright's
        self.url = url
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{url}/chat/")
        self.page.get_by_label("Message", exact=True).wait_for()

    def set_slider(self, name: str, value: float) -> None:
        """Type a value into a slider's number."""
        box = self.page.get_by_label(f"number input for {name}").first
        box.fill(str(value))
        box.press("Enter")

    def be_greedy(self) -> None:
        """Set the temperature to 0, so that answers are known."""
        self.page.get_by_role("button", name="Model and sampling").click()
        self.set_slider("Temperature", 0)

    def ask(self, text: str) -> None:
        """Type a message and send it by the keyboard."""
        box = self.page.get_by_label("Message", exact=True)
        box.fill(text)
        box.press("Enter")

    def answers(self) -> list[str]:
        """Read the bubbles of the assistant."""
        bubbles = self.page.locator(".bot.message")
        return [text.strip() for text in bubbles.all_inner_texts()]

    def wait_for_answer(self, text: str) -> None:
        """Wait until the last bubble says something."""
        self.page.locator(".bot.message", has_text=text).last.wait_for()
        self.page.get_by_role("button", name="Stop").wait_for(state="hidden")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Any, page_server: LocalServer) -> Iterator[Visit]:
    """Visit the page, and see that nothing went wrong or out of the machine meanwhile."""
    visit = Visit(browser, page_server.url)
    visit.be_greedy()
    yield visit
    visit.close()
    outside = [url for url in visit.requests if not url.startswith((page_server.url, "data:", "blob:"))]
    assert outside == []
    assert visit.complaints == []


def test_an_answer_appears_step_by_step(visit: Visit) -> None:
    seen: set[str] = set()

    visit.ask("Count")
    deadline = time.monotonic() + 30
    while COUNTING.strip() not in " ".join(seen) and time.monotonic() < deadline:
        seen |= {answer.split("\n")[0] for answer in visit.answers()}
    visit.wait_for_answer("ten one two")

    assert len(seen) >= 3
    assert "tokens/s" in visit.page.locator("#speed").inner_text()


def test_emoji_arrive_whole(visit: Visit) -> None:
    visit.ask("Show me emoji")

    visit.wait_for_answer(EMOJI)


def test_a_tool_call_is_a_block_that_opens_and_shows_84(visit: Visit) -> None:
    visit.ask("What is 12*(3+4)?")
    visit.wait_for_answer("It is 84.")

    visit.page.get_by_text("python: 12*(3+4)").wait_for()
    assert visit.page.get_by_text("84", exact=True).count() == 1


def test_html_of_the_model_and_of_the_user_is_inert(visit: Visit) -> None:
    visit.ask('<img src=x onerror="window.hacked=2"><script>window.hacked=3</script> hi')
    visit.page.locator(".bot.message").first.wait_for()
    visit.ask("Show me HTML")
    time.sleep(3)

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("[role=log] img[onerror]").count() == 0
