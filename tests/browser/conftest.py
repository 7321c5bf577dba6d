"""A headless Chromium in front of the real page, API and engine."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from nanoray.serve.settings import ApiSettings
from tests.browser.visit import Visit
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
