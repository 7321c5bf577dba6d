"""The API over a real engine, in this process, on a port of its own: everything but Ray."""

from collections.abc import Iterator

import pytest

from nanoray.serve.settings import ApiSettings
from tests.serve.server import LocalServer, serve


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """A server without keys."""
    with serve(ApiSettings(most_answers=64)) as local:
        yield local
