import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoray import storage
from nanoray.config import DataError, StorageError
from nanoray.data.manifest import make_manifest
from nanoray.data.patient_file import PatientFile, open_patiently
from nanoray.data.plan import read_documents, split_units
from tests.data.shards import sentences

SHARD = "memory://patient/texts/shard.parquet"


class Flaky(io.BytesIO):
    """A file of which every other read fails half-way, as one on a busy object store."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads % 2:
            super().read(3)
            raise OSError(errno.EBUSY, "Slow down")
        return super().read(size)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def shard() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    with fs.open(SHARD, "wb") as file:
        pq.write_table(pa.table({"text": sentences(400)}), file, row_group_size=50)
    yield fs
    fs.rm("memory://patient", recursive=True)


def test_a_read_that_fails_is_made_again_from_where_it_began():
    content = bytes(range(200))

    with PatientFile(Flaky(content), "a", seconds=10) as file:
        assert file.read(50) + file.read(7) == content[:57]
        assert file.seek(-10, 2) == 190
        assert file.read() == content[190:]
        assert file.tell() == 200
    assert file.closed


def test_documents_are_whole_though_their_storage_is_busy(shard, monkeypatch):
    manifest = make_manifest("memory://patient/texts", "text")
    [*units] = [unit for part in split_units(manifest) for unit in part]
    expected = [read_documents(manifest, unit) for unit in units]
    content = shard.cat_file(SHARD)
    monkeypatch.setattr(type(shard), "open", lambda *args, **kwargs: Flaky(content))

    found = [read_documents(manifest, unit) for unit in units]

    assert found == expected
    assert sum(map(len, found)) == 400


def test_a_storage_that_fails_for_long_is_no_fault_of_the_file(shard, monkeypatch):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(type(shard), "open", fail)

    with pytest.raises(StorageError, match=r"shard\.parquet could not be reached .*no answer"):
        open_patiently(shard, SHARD, seconds=0.001)


def test_a_file_that_is_not_there_is_told_at_once(tmp_path: Path):
    fs = fsspec.filesystem("file")
    (tmp_path / "folder").mkdir()

    for name, reason in (("nothing", "No such file"), ("folder", "Is a directory")):
        with pytest.raises(DataError, match=rf"{name} cannot be read \(.*{reason}"):
            open_patiently(fs, str(tmp_path / name), seconds=600)
