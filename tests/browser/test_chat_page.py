"""The chat page as its user drives it."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.chat_run import COUNTING, EMOJI, HOSTILE, WEATHER
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
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{url}/chat/")
        self.page.get_by_label("Message", exact=True).wait_for()

    def _hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def set_slider(self, name: str, value: float) -> None:
        """Type a value into a slider's number, and wait until the slider itself has it."""
        box = self.page.get_by_label(f"number input for {name}").first
        slider = self.page.get_by_label(f"range slider for {name}").first
        deadline = time.monotonic() + WAIT / 1000
        while float(slider.input_value()) != value and time.monotonic() < deadline:
            box.fill(str(value))
            box.press("Tab")
            self.page.wait_for_timeout(300)
        self.page.wait_for_timeout(300)  # the page tells its server a moment later

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


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something, as long as for everything here."""
    deadline = time.monotonic() + WAIT / 1000
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def visit(browser: Any, page_server: LocalServer) -> Iterator[Visit]:
    """Visit the page, and see that nothing went wrong or out of the machine meanwhile."""
    visit = Visit(browser, page_server.url)
    visit.be_greedy()
    yield visit
    visit.close()
    outside = [
        url for url in visit.requests if not url.startswith((page_server.url, "data:", "blob:"))
    ]
    assert outside == []
    assert visit.complaints == []


def test_an_answer_appears_step_by_step(
    visit: Visit, page_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So slow that a busy machine too sees it grow.
    monkeypatch.setattr(page_server.thread, "_observe", lambda _: time.sleep(0.05))
    seen: set[str] = set()

    visit.ask("Count")
    deadline = time.monotonic() + 30
    while COUNTING.strip() not in " ".join(seen) and time.monotonic() < deadline:
        seen |= {answer.split("\n")[0] for answer in visit.answers()}
    visit.wait_for_answer("ten one two")

    assert len(seen) >= 3, seen
    assert "tokens/s" in visit.page.locator("#speed").inner_text()


@pytest.mark.slow
def test_emoji_arrive_whole(visit: Visit) -> None:
    visit.ask("Show me emoji")

    visit.wait_for_answer(EMOJI)


def test_a_tool_call_is_a_block_that_opens_and_shows_84(visit: Visit) -> None:
    visit.ask("What is 12*(3+4)?")
    visit.wait_for_answer("It is 84.")

    visit.page.get_by_text("python: 12*(3+4)").click()

    visit.page.get_by_text("84", exact=True).wait_for()


def test_html_of_the_model_is_shown_as_text(visit: Visit) -> None:
    visit.ask("Show me HTML")
    visit.wait_for_answer(HOSTILE.partition(" and ")[0])

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("[role=log] img").count() == 0


def test_html_of_the_user_is_shown_as_text(visit: Visit) -> None:
    visit.ask('<img src=x onerror="window.hacked=2"><script>window.hacked=3</script> hi')
    visit.page.locator(".bot.message").first.wait_for()

    assert visit.page.evaluate("window.hacked") is None
    assert visit.page.locator("[role=log] img").count() == 0
    shown = visit.page.locator(".user.message").first.inner_text()
    assert '<img src=x onerror="window.hacked=2">' in shown


def test_stop_ends_the_answer_and_frees_its_place(
    visit: Visit, page_server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = page_server.thread.engine
    monkeypatch.setattr(page_server.thread, "_observe", lambda _: time.sleep(0.2))

    visit.ask("Count")
    visit.page.locator(".bot.message", has_text="one").last.wait_for()
    visit.page.get_by_role("button", name="Stop").click()
    deadline = time.monotonic() + 2
    while engine.has_work and time.monotonic() < deadline:
        time.sleep(0.02)

    assert not engine.has_work
    assert page_server.api.admission.taken == 0


def test_retry_undo_and_edit(visit: Visit, page_server: LocalServer) -> None:
    visit.ask("What color is the sky?")
    visit.wait_for_answer(WEATHER)

    asked = len(page_server.recorder.bodies)
    visit.page.get_by_label("Retry").last.click()
    wait_until(lambda: len(page_server.recorder.bodies) > asked)
    wait_until(lambda: visit.answers() == [WEATHER])
    visit.page.get_by_label("Undo").last.click()
    visit.page.locator(".bot.message").first.wait_for(state="detached")
    box = visit.page.get_by_label("Message", exact=True)
    undone = box.input_value()
    visit.ask("Count")
    visit.wait_for_answer("ten")
    visit.page.get_by_label("Edit").last.click()
    editor = visit.page.locator("textarea.edit-textarea, .edit-textarea textarea").first
    editor.fill("Show me emoji")
    visit.page.get_by_label("Submit").first.click()
    visit.wait_for_answer(EMOJI)

    assert undone == "What color is the sky?"


def test_controls_reach_the_request(visit: Visit, page_server: LocalServer) -> None:
    visit.set_slider("Top k", 7)
    visit.set_slider("Max tokens", 9)
    visit.page.get_by_label("System prompt").first.fill("Be brief.")
    visit.page.get_by_label("System prompt").first.press("Tab")

    visit.ask("What color is the sky?")
    visit.wait_for_answer("The sky")
    body = json.loads(page_server.recorder.bodies[-1])

    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0, 7, 9)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.slow
def test_the_history_survives_a_reload(visit: Visit) -> None:
    visit.ask("What color is the sky?")
    visit.wait_for_answer(WEATHER)
    time.sleep(1)

    visit.page.reload()
    visit.page.get_by_label("Message", exact=True).wait_for()
    visit.page.get_by_text("What color is the sky?").first.click()

    visit.page.locator(".bot.message", has_text=WEATHER).wait_for()


@pytest.mark.slow
def test_two_models_answer_side_by_side(visit: Visit) -> None:
    visit.page.get_by_role("tab", name="Compare").click()
    box = visit.page.get_by_label("Message to both")
    box.wait_for()
    box.fill("Count")
    box.press("Enter")

    visit.page.locator(".bot.message:visible").nth(1).wait_for()


def test_an_engine_that_fails_is_told_and_the_question_stays(browser: Any) -> None:
    with serve(ApiSettings(), page=True) as server:
        visit = Visit(browser, server.url)
        server.thread.engine.runner = None  # type: ignore[assignment]

        visit.ask("What color is the sky?")
        visit.page.get_by_text("The server could not answer").wait_for()

        assert visit.page.locator(".user.message").inner_text().strip() == "What color is the sky?"
        visit.close()


@pytest.mark.slow
def test_several_visitors_are_answered_at_once(browser: Any, page_server: LocalServer) -> None:
    visits = [Visit(browser, page_server.url) for _ in range(3)]
    for visit in visits:
        visit.be_greedy()
    for visit in visits:
        visit.ask("Count")

    for visit in visits:
        visit.wait_for_answer("ten one two")
        visit.close()


def test_every_control_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea')]
            .filter(e => e.offsetParent && !(e.ariaLabel || e.textContent.trim() || e.title
                || e.placeholder || e.labels?.length))
            .map(e => e.outerHTML.slice(0, 120))"""
    )

    assert nameless == []


def test_on_a_phone_nothing_is_wider_than_the_screen(
    browser: Any, page_server: LocalServer
) -> None:
    visit = Visit(browser, page_server.url, viewport={"width": 390, "height": 844})
    visit.ask("Count")
    visit.page.locator(".bot.message").first.wait_for()

    width = visit.page.evaluate("document.documentElement.scrollWidth")
    visit.close()

    assert width <= 390
