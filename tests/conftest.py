"""What tests of several folders need: a small Ray cluster, and a disk that is easily full."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.disks import own_filesystem
from tests.running import Cluster, start_cluster


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make a proof slow as well, so that only who asks for it runs it."""
    if item.get_closest_marker("proof"):
        item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Compute with one thread: tiny tensors gain nothing from more, and results repeat exactly."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Start the cluster when the first test asks for it, and end it with the session."""
    cluster = start_cluster(num_cpus=8)
    yield cluster
    cluster.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 kB."""
    with own_filesystem(tmp_path / "disk", "64k") as disk:
        yield disk


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """Undo what a job that runs in this process sets for its own."""
    ours, root = logging.getLogger("nanoray"), logging.getLogger()
    level, handlers = ours.level, root.handlers[:]
    yield
    ours.setLevel(level)
    root.handlers[:] = handlers
