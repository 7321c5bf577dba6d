"""Storage that goes away for a while: waited for, and never taken for one that is empty."""

import pytest
from botocore.exceptions import EndpointConnectionError

from nanoray import storage
from nanoray.config import StorageError
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
    run.begin_attempt("pretrain", 0)
    folder.check_present()
    run.begin_attempt("pretrain", 20)
    with pytest.raises(FileNotFoundError, match="checkpoints is not there"):
        folder.check_present()
    run.forget_stage("pretrain")
    folder.check_present()
