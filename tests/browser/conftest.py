"""A headless Chromium in front of the real page, API and engine."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.serve.server import LocalServer, serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def page_server() -> Iterator[LocalServer]:
    """A server with the page."""
    with serve(ApiSettings(), page=True) as server:
        yield server


@pytest.fixture(scope="module")  # as long as it lives, its event loop runs in this thread
def browser() -> Iterator[Any]:  # Any: an optional dependency
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
