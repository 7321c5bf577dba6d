"""Storage that goes away for a while: waited for, and never taken for one that is empty."""

import contextlib
import threading
import time

import pytest
from botocore.exceptions import EndpointConnectionError

from nanoray import storage
from nanoray.config import StorageError
from nanoray.events import read_events
from nanoray.stages.stage_driver import recorded
from nanoray.storage import RunFolder, with_patience


class Outage:
    """Storage that fails so many times, with an error of its own."""

    def __init__(self, times: int, error: Exception) -> None:
        self.times, self.error = times, error

    def read(self) -> str:
        self.times -= 1
        if self.times >= 0:
            raise self.error
        return "read"


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)


def test_storage_that_comes_back_is_waited_for(no_pause, caplog):
    for error in (OSError(5, "Input/output error"), EndpointConnectionError(endpoint_url="s3")):
        assert with_patience(Outage(2, error).read, 10, "runs/r") == "read"
    assert caplog.text.count("runs/r cannot be reached (") == 4


def test_storage_that_stays_away_is_one_sentence(no_pause):
    with pytest.raises(StorageError, match=r"^runs/r could not be reached for 0 s \(.*gone\)\. M"):
        with_patience(Outage(99, OSError(5, "gone")).read, 0.05, "runs/r")


def test_a_fault_in_the_code_is_not_taken_for_an_outage(no_pause):
    with pytest.raises(ZeroDivisionError):
        with_patience(Outage(1, ZeroDivisionError()).read, 10, "runs/r")


def test_a_stage_whose_files_are_away_is_not_taken_for_a_new_one(tmp_path):
    run = RunFolder(str(tmp_path), "r")
    folder = run.stage("pretrain")
    with pytest.raises(FileNotFoundError, match=r"config\.json is not there"):
        folder.check_present()

    folder.write_config({})
    run.begin_attempt("pretrain")
    folder.check_present()
    run.record_start(run.begin_attempt("pretrain"), 20)
    with pytest.raises(FileNotFoundError, match="checkpoints is not there"):
        folder.check_present()
    run.forget_stage("pretrain")
    folder.check_present()


def test_a_stage_that_has_saved_in_its_first_attempt_is_not_taken_for_a_new_one_either(tmp_path):
    run = RunFolder(str(tmp_path), "r")
    folder = run.stage("pretrain")
    folder.write_config({})
    run.record_start(run.begin_attempt("pretrain"), 0)
    (tmp_path / "r/pretrain/checkpoints/damaged").mkdir(parents=True)
    folder.note_saved(1000)
    folder.check_present()  # the only one was damaged: that is no outage

    (tmp_path / "r/pretrain/checkpoints/damaged").rmdir()  # what is under a mount that is away
    with pytest.raises(FileNotFoundError, match="checkpoints is not there, or empty"):
        folder.check_present()
    (tmp_path / "r/pretrain/checkpoints").rmdir()
    with pytest.raises(FileNotFoundError, match="checkpoints is not there, or empty"):
        folder.check_present()


def test_the_end_of_a_job_is_recorded_as_soon_as_its_full_disk_has_room_again(small_disk, no_pause):
    folder = RunFolder(str(small_disk), "r").stage("pretrain")
    filler = small_disk / "filler"

    def make_room() -> None:
        time.sleep(0.5)
        filler.unlink()

    with recorded(folder, patience_seconds=30):
        with contextlib.suppress(OSError):
            filler.write_bytes(b"x" * 100_000)
        # The last page of the file has room for one line more or less.
        with contextlib.suppress(OSError), open(folder.path("events.jsonl"), "ab", 0) as file:
            file.write(b"\n" * 5_000)
        threading.Thread(target=make_room).start()

    assert [event["event"] for event in read_events(folder)] == ["submit", "stop"]


def test_a_job_that_failed_tells_of_its_own_failure_where_the_disk_is_full_too(small_disk, caplog):
    folder = RunFolder(str(small_disk), "r").stage("pretrain")

    with pytest.raises(ZeroDivisionError), recorded(folder, patience_seconds=30):  # noqa: PT012
        with contextlib.suppress(OSError):
            (small_disk / "filler").write_bytes(b"x" * 100_000)
        with contextlib.suppress(OSError), open(folder.path("events.jsonl"), "ab", 0) as file:
            file.write(b"\n" * 5_000)
        raise ZeroDivisionError

    assert "could not be told how the job ended" in caplog.text
