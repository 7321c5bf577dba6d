import os
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from nanoray.config import StorageError
from nanoray.ops import doctor_storage
from nanoray.ops.doctor_storage import probe_folder, try_storage


@pytest.fixture(autouse=True)
def little(monkeypatch):
    """Write two megabytes instead of 64."""
    monkeypatch.setattr(doctor_storage, "MOST_BYTES", 2 * 2**20)


def test_storage_is_measured_and_left_as_it_was(tmp_path: Path):
    storage = tmp_path / "new" / "runs"

    with probe_folder(str(storage)) as probe:
        facts = try_storage(probe, "node-a")

    assert facts.error is None
    assert facts.is_visible
    assert facts.write_bytes_per_second > 1e5
    assert facts.read_bytes_per_second > 1e5
    assert facts.rename_seconds is not None
    assert facts.free_bytes is not None
    assert list(tmp_path.iterdir()) == []


def test_a_storage_with_runs_keeps_them(tmp_path: Path):
    (tmp_path / "d4").mkdir()

    with probe_folder(str(tmp_path)) as probe:
        try_storage(probe, "node-a")

    assert [path.name for path in tmp_path.iterdir()] == ["d4"]


def test_a_node_that_does_not_see_the_drivers_file_writes_nothing(tmp_path: Path):
    facts = try_storage(f"{tmp_path}/elsewhere/.doctor-1", "node-a")

    assert not facts.is_visible
    assert facts.error is None
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_has_no_rename_and_no_free_space():
    with probe_folder("memory://runs") as probe:
        facts = try_storage(probe, "node-a")

    assert facts.is_visible
    assert facts.error is None
    assert facts.rename_seconds is None
    assert facts.free_bytes is None
    assert fsspec.filesystem("memory").find("/runs") == []


def test_a_full_disk_is_the_error_of_the_node(small_disk: Path):
    with probe_folder(str(small_disk)) as probe:
        facts = try_storage(probe, "node-a")

    assert facts.error is not None
    assert "No space left" in facts.error
    assert list(small_disk.iterdir()) == []


def test_a_storage_that_the_driver_cannot_write_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(StorageError, match=r"(?i)not a directory|exists"),
        probe_folder(f"{tmp_path}/file/runs"),
    ):
        pass


class SlowFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files, a tenth of a second for each piece."""

    protocol = "slowtest"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        write = file.write

        def slowly(piece: bytes) -> int:
            time.sleep(0.1)
            return write(piece)

        file.write = slowly
        return file


def test_slow_storage_is_measured_as_slow(tmp_path: Path):
    fsspec.register_implementation("slowtest", SlowFileSystem, clobber=True)

    with probe_folder(f"slowtest://{tmp_path}") as probe:
        facts = try_storage(probe, "node-a")

    assert facts.error is None
    assert 1e6 < facts.write_bytes_per_second < 10.5e6


def test_bytes_that_come_back_changed_are_an_error(tmp_path: Path, monkeypatch):
    read = doctor_storage.read_pieces

    def spoil(fs: Any, path: str, size: int) -> Any:
        with open(path, "r+b") as file:
            file.seek(2**20 + 5)
            file.write(os.urandom(8))
        return read(fs, path, size)

    monkeypatch.setattr(doctor_storage, "read_pieces", spoil)

    with probe_folder(str(tmp_path)) as probe:
        facts = try_storage(probe, "node-a")

    assert facts.error == "it gave back other bytes than were written"


class ForbiddingFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Lets nobody write or delete."""

    protocol = "forbidding"

    def pipe_file(self, *args, **options):
        raise PermissionError("denied")

    def rm(self, *args, **options):
        raise PermissionError("deleting is denied too")


def test_a_storage_that_forbids_all_is_told_by_what_went_wrong_first(tmp_path, monkeypatch):
    fs = ForbiddingFileSystem()
    monkeypatch.setattr("nanoray.ops.doctor_storage.open_location", lambda _: (fs, str(tmp_path)))
    monkeypatch.setattr("nanoray.ops.doctor_storage.write_file", fs.pipe_file)

    with pytest.raises(StorageError, match=r"^denied"), probe_folder("forbidding://x"):
        pass
