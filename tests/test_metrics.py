import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from nanoray import metrics
from nanoray.config import RunReplacedError
from nanoray.metrics import MetricsLogger, StepLog, read_metrics
from nanoray.storage import RunFolder, StageFolder, open_location


class Receiver:
    """Takes what is logged to Weights & Biases, in its place."""

    def __init__(self) -> None:
        self.received: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = False

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.received.append((step, data))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StageFolder]:
    """A stage on a disk, and on a filesystem where nothing can be appended."""
    storage = str(tmp_path) if request.param == "local" else "memory://runs"
    stage = RunFolder(storage, "demo").stage("pretrain")
    stage.fs.makedirs(stage.path(), exist_ok=True)
    yield stage
    if request.param == "memory":
        MemoryFileSystem(skip_instance_cache=True).rm("/runs", recursive=True)


def log_of(folder: StageFolder, last_step: int = 10**9) -> StepLog:
    return StepLog(folder.fs, folder.path("log.jsonl"), last_step=last_step)


def write_steps(folder: StageFolder, *steps: int) -> None:
    log = log_of(folder)
    for step in steps:
        log.append({"step": step, "value": step / 10})
    log.flush()
    log.close()


def steps_in(fs: AbstractFileSystem, path: str) -> list[int]:
    return [record["step"] for record in read_metrics(fs, path)]


def test_a_log_is_one_json_object_per_line(folder: StageFolder) -> None:
    write_steps(folder, 1, 2)

    text = folder.fs.cat_file(folder.path("log.jsonl")).decode()

    assert text == '{"step": 1, "value": 0.1}\n{"step": 2, "value": 0.2}\n'


def test_a_reopened_log_is_cut_back_to_the_restored_step_and_goes_on(folder: StageFolder) -> None:
    write_steps(folder, 1, 2, 3, 4, 5)

    log = log_of(folder, last_step=3)
    cut = steps_in(folder.fs, folder.path("log.jsonl"))
    log.append({"step": 4, "value": -1.0})
    log.flush()
    log.close()

    assert cut == [1, 2, 3]
    assert read_metrics(folder.fs, folder.path("log.jsonl"))[2:] == [
        {"step": 3, "value": 0.3},
        {"step": 4, "value": -1.0},
    ]


def test_a_log_that_begins_anew_is_empty(folder: StageFolder) -> None:
    write_steps(folder, 1, 2, 3)

    log = log_of(folder, last_step=0)
    log.close()

    assert log.last() == {}
    assert steps_in(folder.fs, folder.path("log.jsonl")) == []


@pytest.mark.parametrize(
    "torn",
    [b'{"step": 3', b'{"step": 3}', b'{"step": 3, "text": "\xc3', b"\x00\x00\x00", b"\x00\x00\n"],
)
def test_a_last_line_that_was_cut_off_is_dropped(folder: StageFolder, torn: bytes) -> None:
    write_steps(folder, 1, 2)
    whole = folder.fs.cat_file(folder.path("log.jsonl"))
    folder.fs.pipe_file(folder.path("log.jsonl"), whole + torn)

    log = log_of(folder)
    log.append({"step": 3, "value": 0.3})
    log.flush()
    log.close()

    assert steps_in(folder.fs, folder.path("log.jsonl")) == [1, 2, 3]


def test_a_line_damaged_in_its_middle_is_dropped(folder: StageFolder) -> None:
    folder.fs.pipe_file(folder.path("log.jsonl"), b'{"step": 1}\n{"step": \x00\x00}\n{"step": 3}\n')

    log = log_of(folder)
    log.close()

    assert steps_in(folder.fs, folder.path("log.jsonl")) == [1, 3]


def test_amending_replaces_the_newest_line_and_no_other(folder: StageFolder) -> None:
    log = log_of(folder)
    for step in (1, 2):
        log.append({"step": step, "text": "é \U0001f600"})
        log.amend({"value": step / 10, "text": "shorter"})
    log.amend({"more": None})
    log.append({"step": 3})
    log.flush()
    log.close()

    assert read_metrics(folder.fs, folder.path("log.jsonl")) == [
        {"step": 1, "text": "shorter", "value": 0.1},
        {"step": 2, "text": "shorter", "value": 0.2, "more": None},
        {"step": 3},
    ]


def test_a_restored_line_can_be_amended(folder: StageFolder) -> None:
    write_steps(folder, 1, 2, 3)

    log = log_of(folder, last_step=2)
    log.amend({"validation": 1.5})
    log.flush()
    log.close()

    assert read_metrics(folder.fs, folder.path("log.jsonl")) == [
        {"step": 1, "value": 0.1},
        {"step": 2, "value": 0.2, "validation": 1.5},
    ]


def test_each_line_is_in_the_file_before_it_is_flushed(tmp_path: Path) -> None:
    fs, base = open_location(str(tmp_path))
    log = StepLog(fs, f"{base}/log.jsonl", last_step=0)

    log.append({"step": 1})
    appended = steps_in(fs, f"{base}/log.jsonl")
    log.amend({"value": 2})
    amended = read_metrics(fs, f"{base}/log.jsonl")
    log.close()

    assert (appended, amended) == ([1], [{"step": 1, "value": 2}])


def test_a_log_that_is_another_groups_is_not_written_anew(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = log_of(folder)
    first.append({"step": 1})
    first.flush()
    replaced = RunReplacedError("r", 1, 2, "another")

    def refuse() -> None:
        raise replaced

    with pytest.raises(RunReplacedError):
        StepLog(folder.fs, folder.path("log.jsonl"), last_step=0, check=refuse)

    assert steps_in(folder.fs, folder.path("log.jsonl")) == [1]
    monkeypatch.setattr(first, "check", refuse)
    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0.0)
    if first.file is None:
        with pytest.raises(RunReplacedError):
            first.append({"step": 2})
        assert steps_in(folder.fs, folder.path("log.jsonl")) == [1]
    first.close()


def test_an_object_store_gets_the_log_anew_when_its_time_has_come(
    folder: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_of(folder)
    log.append({"step": 1})
    before = steps_in(folder.fs, folder.path("log.jsonl"))

    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0.0)
    log.append({"step": 2})
    log.close()

    assert before == ([1] if log.file is not None else [])
    assert steps_in(folder.fs, folder.path("log.jsonl")) == [1, 2]


def test_metrics_and_ledger_have_each_step_once_after_a_resume(folder: StageFolder) -> None:
    logger = MetricsLogger(folder, last_step=0)
    for step in (1, 2, 3):
        logger.record({"step": step, "train/loss": 5.0}, {"step": step, "rows": "a"})
    logger.close()

    resumed = MetricsLogger(folder, last_step=2)
    for step in (3, 4):
        resumed.record({"step": step, "train/loss": 4.0}, {"step": step, "rows": "b"})
        resumed.amend({"validation/bits_per_byte": 1.0})
    resumed.close()

    written = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    ledger = read_metrics(folder.fs, folder.path("ledger.jsonl"))
    assert [(r["step"], r["train/loss"]) for r in written] == [(1, 5), (2, 5), (3, 4), (4, 4)]
    assert ["validation/bits_per_byte" in r for r in written] == [False, False, True, True]
    assert [(r["step"], r["rows"]) for r in ledger] == [(1, "a"), (2, "a"), (3, "b"), (4, "b")]


def test_a_resumed_logger_knows_the_last_step_it_kept(folder: StageFolder) -> None:
    logger = MetricsLogger(folder, last_step=0)
    for step in (1, 2, 3):
        logger.record({"step": step, "train/loss": 5.0 - step}, {"step": step})
    logger.close()

    resumed = MetricsLogger(folder, last_step=2)
    resumed.close()

    assert resumed.restored_last == {"step": 2, "train/loss": 3.0}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = MetricsLogger(None, last_step=0)

    logger.record({"step": 1}, {"step": 1})
    logger.amend({"value": 2})
    logger.flush()
    logger.close()

    assert logger.last == {"step": 1, "value": 2}
    assert os.listdir(tmp_path) == []


def test_weights_and_biases_gets_each_step_once_with_all_that_was_added(
    folder: StageFolder,
) -> None:
    receiver = Receiver()
    logger = MetricsLogger(folder, last_step=0, wandb=receiver)

    for step in (1, 2):
        logger.record({"step": step}, {"step": step})
        logger.amend({"value": step / 10})
    logger.close()

    assert receiver.received == [
        (1, {"step": 1, "value": 0.1}),
        (2, {"step": 2, "value": 0.2}),
    ]
    assert receiver.finished


def test_weights_and_biases_does_not_get_the_restored_step_again(folder: StageFolder) -> None:
    write = MetricsLogger(folder, last_step=0)
    write.record({"step": 1}, {"step": 1})
    write.close()
    receiver = Receiver()

    resumed = MetricsLogger(folder, last_step=1, wandb=receiver)
    resumed.record({"step": 2}, {"step": 2})
    resumed.close()

    assert receiver.received == [(2, {"step": 2})]


class FullDisk:
    """The raw file of a log on a disk that has room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.room])
        self.room -= written
        return int(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 30, 70])
def test_lines_that_a_full_disk_does_not_take_are_written_later(tmp_path, caplog, room):
    path = str(tmp_path / "metrics.jsonl")
    log = StepLog(LocalFileSystem(), path, last_step=0)
    log.append({"step": 1})
    disk: Any = FullDisk(log.file, room)
    log.file = disk

    for step in range(2, 6):
        log.append({"step": step, "loss": 1.0})
        log.amend({"bpb": step})
    with pytest.raises(OSError, match="No space left"):
        log.flush()
    disk.room = 10_000
    log.amend({"last": True})
    log.flush()

    steps = [{"step": step, "loss": 1.0, "bpb": step} for step in range(2, 5)]
    last = {"step": 5, "loss": 1.0, "bpb": 5, "last": True}
    log.close()
    assert read_metrics(LocalFileSystem(), path) == [{"step": 1}, *steps, last]
    assert caplog.text.count("its lines are kept") == 1


class StaleFile:
    """The raw file of a log in a folder that can be away for a while."""

    is_away = False

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, content: bytes) -> int:
        self._check()
        return int(self.file.write(content))

    def truncate(self, size: int) -> int:
        self._check()
        return int(self.file.truncate(size))

    def _check(self) -> None:
        if self.is_away:
            raise OSError(errno.ESTALE, "Stale file handle")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("comes_back", ["before the next step", "later"])
def test_a_folder_that_is_away_between_a_step_and_what_is_added_to_it_stops_nothing(
    tmp_path, caplog, comes_back
):
    path = str(tmp_path / "metrics.jsonl")
    log = StepLog(LocalFileSystem(), path, last_step=0)
    storage: Any = StaleFile(log.file)
    log.file = storage
    log.append({"step": 1})
    log.append({"step": 2})

    storage.is_away = True
    log.amend({"checkpoint/stall_seconds": 0.5})
    log.amend({"validation/bits_per_byte": 1.5})
    if comes_back == "later":
        log.append({"step": 3})
        log.amend({"more": 1})
    storage.is_away = False
    if comes_back != "later":
        log.append({"step": 3})
        log.amend({"more": 1})
    log.flush()
    log.close()

    added = {"checkpoint/stall_seconds": 0.5, "validation/bits_per_byte": 1.5}
    assert read_metrics(LocalFileSystem(), path) == [
        {"step": 1},
        {"step": 2, **added},
        {"step": 3, "more": 1},
    ]
    assert caplog.text.count("its lines are kept") == 1
