"""Storage that fails while the shards are listed says nothing about the shards."""

import errno
import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from fsspec import AbstractFileSystem

from nanoray import storage
from nanoray.config import DataError, StorageError
from nanoray.data import listing, patient_file
from nanoray.data import manifest as manifest_module
from nanoray.data.manifest import make_manifest
from nanoray.storage import open_location
from tests.data.shards import sentences, write_shard, write_shards
from tests.http_server import serving
from tests.running import free_ports

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


@pytest.mark.parametrize("target", ["nowhere", NAMES[1]], ids=["broken", "circle"])
def test_a_shard_that_is_a_broken_link_is_a_bad_shard(folder, target, caplog):
    (folder / NAMES[1]).unlink()
    (folder / NAMES[1]).symlink_to(target)

    for address in (str(folder), f"{folder}/*"):
        with pytest.raises(DataError, match=rf"{NAMES[1]} is a link to .*--skip-bad-shards"):
            make_manifest(address, "text")
        manifest = make_manifest(address, "text", skip_bad_shards=True)

        assert [shard.path for shard in manifest.shards] == [NAMES[0], NAMES[2]]
    assert caplog.text.count(f"{NAMES[1]} is a link to {target}, where nothing is") == 2


def fail_first(function: Callable[..., Any], errors: list[Exception]) -> Callable[..., Any]:
    """Give a function that fails once with each error before it does its work."""

    def fail_or_call(*args: Any, **kwargs: Any) -> Any:
        if errors:
            raise errors.pop()
        return function(*args, **kwargs)

    return fail_or_call


@pytest.mark.parametrize("place", ["", f"/{NAMES[1]}", "/*.parquet"])
@pytest.mark.parametrize("look", ["isfile", "isdir", "glob"])
def test_a_storage_that_fails_while_it_is_looked_at_is_waited_for(folder, place, look, monkeypatch):
    expected = make_manifest(f"{folder}{place}", "text")
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    fs = open_location(str(folder))[0]
    errors: list[Exception] = [OSError(errno.EBUSY, "Slow down"), TimeoutError("no answer")]
    monkeypatch.setattr(fs, look, fail_first(getattr(fs, look), errors))

    assert make_manifest(f"{folder}{place}", "text") == expected


def test_a_storage_without_credentials_is_told_at_once(folder, monkeypatch):
    fs = open_location(str(folder))[0]
    monkeypatch.setattr(fs, "isfile", fail_first(fs.isfile, [NoCredentialsError()]))

    with pytest.raises(StorageError, match=rf"^--data {folder} may not be read \(Unable to loc"):
        make_manifest(str(folder), "text")


def test_a_server_that_is_not_there_is_one_sentence_soon(monkeypatch):
    monkeypatch.setattr(patient_file, "UNREACHABLE_SECONDS", 0.02)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    address = f"http://127.0.0.1:{free_ports(1)[0]}/x.parquet"

    with pytest.raises(StorageError, match=rf"^--data {address} cannot be reached \(.*Check the"):
        make_manifest(address, "text")


@pytest.mark.parametrize(("status", "is_told_at_once"), [(403, True), (401, True), (503, False)])
def test_a_server_that_refuses_is_told_at_once(status, is_told_at_once, monkeypatch):
    monkeypatch.setattr(listing, "READ_PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    said = "may not be read" if is_told_at_once else "could not be reached for"
    with serving(Refusing) as address, pytest.raises(StorageError, match=f"{said} .*{status}"):
        make_manifest(f"{address}/x.parquet", "text")


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(folder, monkeypatch):
    write_shard(folder / "more" / "shard_9.parquet", sentences(8))
    monkeypatch.setattr(listing, "READ_PATIENCE_SECONDS", 0.01)
    scandir = os.scandir

    def fail(path: str) -> Any:
        if str(path).endswith("more"):
            raise OSError(errno.ESTALE, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)

    with pytest.raises(StorageError, match=r"texts could not be reached .*Stale file handle"):
        make_manifest(str(folder), "text")
