"""Rows of text out of parquet files, on storage that is large, far away, or gone for a while."""

import platform
import threading
import time
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from nanoray import storage
from nanoray.config import DataError, StorageError
from nanoray.data import text_rows
from nanoray.data.patient_file import PatientFile
from nanoray.data.text_rows import read_text_rows
from tests.data.shards import write_row_groups, write_shard


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)


def decoded(texts: list[bytes | None]) -> list[str]:
    return [text.decode() for text in texts if text is not None]


def test_of_a_large_row_group_a_few_rows_are_read_at_a_time(tmp_path: Path) -> None:
    texts = [f"{number} " + "some words " * 400 for number in range(10_000)]
    write_row_groups(tmp_path / "one.parquet", [texts])
    pool, before = pa.system_memory_pool(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        read = read_text_rows(str(tmp_path), "one.parquet", "text", 5100, 5700)
    finally:
        pa.set_memory_pool(before)

    assert decoded(read) == texts[5100:5700]
    assert pool.max_memory() < sum(map(len, texts)) / 4


def test_of_a_large_row_group_on_remote_storage_little_more_is_fetched_than_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} " + "some words " * 400 for number in range(10_000)]
    write_row_groups(tmp_path / "one.parquet", [texts])
    fs = fsspec.filesystem("memory")
    fs.put_file(str(tmp_path / "one.parquet"), "/large/one.parquet")
    monkeypatch.setattr(text_rows, "BUFFER_BYTES", 2**18)
    sizes: list[int] = []
    read = PatientFile.read

    def counted(file: PatientFile, num_bytes: int = -1) -> bytes:
        content = read(file, num_bytes)
        sizes.append(len(content))
        return content

    monkeypatch.setattr(PatientFile, "read", counted)
    try:
        found = read_text_rows("memory://large", "one.parquet", "text", 300, 600)
    finally:
        fs.rm("/large", recursive=True)

    assert decoded(found) == texts[300:600]
    assert sum(sizes) < sum(map(len, texts)) / 5
    assert max(sizes) < 2**21, "a page and a buffer"


def test_a_folder_that_is_gone_for_a_while_is_waited_for(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    write_shard(texts / "a.parquet", ["one", "two"])
    away = texts.rename(tmp_path / "away")
    texts.mkdir()  # the mount point

    def come_back() -> None:
        time.sleep(0.1)
        texts.rmdir()
        away.rename(texts)

    thread = threading.Thread(target=come_back)
    thread.start()
    found = read_text_rows(str(texts), "a.parquet", "text", 0, 2)
    thread.join()

    assert decoded(found) == ["one", "two"]


def test_a_folder_that_another_machine_has_is_soon_told_with_the_name_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_rows, "FIRST_PATIENCE_SECONDS", 0.02)
    monkeypatch.setattr(platform, "node", lambda: "node-7")

    with pytest.raises(
        StorageError, match=r"a\.parquet \(as node-7 sees it\) could not be reached"
    ):
        read_text_rows(str(tmp_path / "nowhere"), "a.parquet", "text", 0, 2)


def test_a_file_that_is_gone_from_among_others_is_told_at_once(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.parquet", ["one"])

    with pytest.raises(DataError, match=r"a\.parquet is gone\. Restore it"):
        read_text_rows(str(tmp_path), "a.parquet", "text", 0, 2)


def test_a_disk_that_fails_while_a_file_is_opened_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "a.parquet", ["one"])
    failures = [OSError(116, "Stale file handle")] * 2
    memory_map = pa.memory_map

    def fail_at_first(path: str) -> pa.MemoryMappedFile:
        if failures:
            raise failures.pop()
        return memory_map(path)

    monkeypatch.setattr(pa, "memory_map", fail_at_first)

    assert decoded(read_text_rows(str(tmp_path), "a.parquet", "text", 0, 1)) == ["one"]
