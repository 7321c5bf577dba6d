"""Storage that fails while the shards are listed says nothing about the shards."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from fsspec import AbstractFileSystem

from nanoray import storage
from nanoray.config import DataError, StorageError
from nanoray.data import manifest as manifest_module
from nanoray.data.manifest import make_manifest
from nanoray.storage import open_location
from tests.data.shards import sentences, write_shard, write_shards

NAMES = ["shard_0.parquet", "shard_1.parquet", "shard_2.parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "texts", NAMES)


def failing_open(fs: AbstractFileSystem, errors: list[Exception]) -> Callable[..., Any]:
    """Give an `open` that fails for one shard, once with each error."""
    opened = fs.open

    def open_or_fail(path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith(NAMES[1]) and errors:
            raise errors.pop()
        return opened(path, *args, **kwargs)

    return open_or_fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Slow down"),
        TimeoutError("no answer"),
        EndpointConnectionError(endpoint_url="s3"),
    ],
    ids=["busy", "timeout", "no connection"],
)
def test_a_shard_that_cannot_be_read_for_a_while_is_waited_for_and_not_skipped(
    folder, error, monkeypatch
):
    expected = make_manifest(str(folder), "text")
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    fs = open_location(str(folder))[0]
    monkeypatch.setattr(fs, "open", failing_open(fs, [error, error]))

    manifest = make_manifest(str(folder), "text", skip_bad_shards=True)

    assert manifest == expected


def test_a_shard_that_cannot_be_read_for_long_stops_the_job_whatever_may_be_skipped(
    folder, monkeypatch
):
    monkeypatch.setattr(manifest_module, "READ_PATIENCE_SECONDS", 0.01)
    fs = open_location(str(folder))[0]
    errors: list[Exception] = [OSError(errno.EBUSY, "Slow down")]
    monkeypatch.setattr(fs, "open", failing_open(fs, errors))

    with pytest.raises(StorageError, match=rf"{NAMES[1]} could not be reached .*Slow down"):
        make_manifest(str(folder), "text", skip_bad_shards=True)


def test_a_shard_that_is_a_broken_link_is_told_at_once(folder):
    (folder / NAMES[1]).unlink()
    (folder / NAMES[1]).symlink_to("nowhere")

    with pytest.raises(DataError, match=rf"{NAMES[1]} cannot be read \(.*No such file"):
        make_manifest(str(folder), "text", skip_bad_shards=True)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(folder, monkeypatch):
    write_shard(folder / "more" / "shard_9.parquet", sentences(8))
    monkeypatch.setattr(manifest_module, "READ_PATIENCE_SECONDS", 0.01)
    scandir = os.scandir

    def fail(path: str) -> Any:
        if str(path).endswith("more"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)

    with pytest.raises(StorageError, match=r"texts could not be reached .*Stale file handle"):
        make_manifest(str(folder), "text")
