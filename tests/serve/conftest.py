"""The API over a real engine, in this process, on a port of its own: everything but Ray."""

from collections.abc import Iterator

import pytest
import torch

from nanoray.serve.settings import ApiSettings
from tests.serve.server import LocalServer, serve


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute with one thread: more of them only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def server(one_thread: None) -> Iterator[LocalServer]:
    """A server without keys."""
    with serve(ApiSettings(most_answers=64)) as local:
        yield local
