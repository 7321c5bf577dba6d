from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from nanoray.storage import RunFolder, StageFolder
from tests.train.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Processes for tests of several ranks, started once."""
    running = Ranks()
    yield running
    running.close()


@pytest.fixture
def bucket() -> Iterator[StageFolder]:
    """Give a stage on an object store: no renames, no appending, nothing but whole objects."""
    address = "memory://bucket"
    yield RunFolder(f"{address}/runs", "tiny").stage("pretrain")
    fsspec.filesystem("memory").rm(address, recursive=True)


@pytest.fixture
def disk(tmp_path: Path) -> StageFolder:
    """Give a stage on a local disk."""
    return RunFolder(str(tmp_path), "tiny").stage("pretrain")


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest) -> StageFolder:
    """Give a stage on each kind of storage."""
    return request.getfixturevalue(request.param)
