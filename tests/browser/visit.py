"""A visitor of the chat page, by a headless Chromium."""

import time
from collections.abc import Callable
from typing import Any

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
        seen = self.page.locator(":visible")
        box = self.page.get_by_label(f"number input for {name}").and_(seen).first
        slider = self.page.get_by_label(f"range slider for {name}").and_(seen).first
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

    def wait_for_the_end(self) -> None:
        """Wait until there is an answer, and all of it."""
        self.page.locator(".bot.message").last.wait_for()
        self.page.get_by_role("button", name="Stop").wait_for(state="hidden")

    def press(self, button: Any, key: str) -> None:  # Any: playwright's
        """Press a button by the keyboard alone."""
        button.wait_for()
        wait_until(button.is_enabled)
        assert button.evaluate("button => button.tabIndex") >= 0
        button.focus()
        self.page.keyboard.press(key)

    def close(self) -> None:
        self.context.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something, as long as for everything here."""
    deadline = time.monotonic() + WAIT / 1000
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
