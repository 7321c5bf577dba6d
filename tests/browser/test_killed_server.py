"""The page when the process that serves it, and the API, is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.browser.visit import Visit
from tests.chat_run import WEATHER, trained_weights

ROOT = Path(__file__).parents[2]
LOST = "Connection to the server was lost"


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A server in a process of its own; it has printed its address."""
    torch.save(trained_weights(), tmp_path / "weights.pt")
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.browser.page_process", str(tmp_path / "weights.pt")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield running
    running.kill()
    running.communicate()


@pytest.mark.slow
def test_a_killed_server_is_told_and_nothing_that_was_said_is_lost(
    browser: Any, process: subprocess.Popen[str]
) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    listener, writer = Visit(browser, url), Visit(browser, url)
    listener.be_greedy()
    listener.ask("What color is the sky?")
    listener.wait_for_answer(WEATHER)
    listener.ask("Count")
    listener.page.locator(".bot.message", has_text="one two").last.wait_for()

    os.kill(process.pid, signal.SIGKILL)
    listener.page.get_by_text(LOST).first.wait_for()
    writer.ask("Are you there?")
    writer.page.get_by_text(LOST).first.wait_for()
    said = [text.strip() for text in listener.page.locator(".user.message").all_inner_texts()]
    heard = listener.answers()
    unsent = writer.page.get_by_label("Message", exact=True).input_value()
    listener.close()
    writer.close()

    assert said == ["What color is the sky?", "Count"]
    assert heard[0] == WEATHER
    assert heard[1].startswith("one two")
    assert unsent == "Are you there?"
