"""Storage that fails for a while costs no step, and one that fails for long stops the run."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanoray.config import StorageError
from nanoray.storage import RunFolder, StageFolder
from nanoray.train import checkpoint
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import committed_steps, newest_verified_step
from nanoray.train.world import LocalWorld
from tests.train.saved_states import open_checkpoints, state_at


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FIRST_RETRY_SECONDS", 0.05)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def break_storage(folder: StageFolder) -> Path:
    """Put a file where the folder of checkpoints has to be."""
    Path(folder.path()).mkdir(parents=True, exist_ok=True)
    obstacle = Path(folder.path("checkpoints"))
    obstacle.write_text("no folder")
    return obstacle


def test_storage_that_fails_for_a_while_costs_no_step(disk: StageFolder, caplog) -> None:
    checkpointer = open_checkpoints(disk)
    obstacle = break_storage(disk)

    checkpointer.save(state_at(4))
    wait_until(lambda: checkpointer.is_retrying)
    obstacle.unlink()
    checkpointer.wait()

    assert committed_steps(disk) == [4]
    assert newest_verified_step(disk) == 4
    assert not checkpointer.is_retrying
    assert "step 4 could not be saved" in caplog.text
    assert "training goes on" in caplog.text


def test_storage_that_fails_for_long_stops_the_run_with_one_sentence(disk: StageFolder) -> None:
    checkpointer = open_checkpoints(disk, patience_seconds=0.3)
    break_storage(disk)
    checkpointer.save(state_at(4))

    with pytest.raises(StorageError) as raised:
        checkpointer.wait()

    assert "could not be written for" in str(raised.value)
    assert "Step 4 is not saved. Mend the storage" in str(raised.value)
    assert not checkpointer.is_retrying


class FailsOnce(Checkpointer):
    """Storage that fails in one call, after or before it has done its work."""

    def __init__(self, folder: StageFolder, call: str, *, after: bool) -> None:
        attempt = folder.run.begin_attempt("pretrain")
        super().__init__(folder, LocalWorld(), attempt=attempt, facts={})
        work = getattr(self, call)
        self.failures = 0

        def fail(*args: object) -> object:
            result = work(*args) if after or self.failures else None
            self.failures += 1
            if self.failures == 1:
                raise OSError(errno.EIO, "Input/output error")
            return result

        setattr(self, call, fail)


@pytest.mark.parametrize("call", ["_write_tensors", "_gather_files", "_commit"])
@pytest.mark.parametrize("after", [True, False])
def test_a_write_that_fails_anywhere_is_made_again(
    folder: StageFolder, call: str, after: bool
) -> None:
    checkpointer = FailsOnce(folder, call, after=after)

    checkpointer.save(state_at(4))
    checkpointer.wait()

    assert checkpointer.failures >= 1
    assert committed_steps(folder) == [4]
    assert newest_verified_step(folder) == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of eight megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_waited_for_and_keeps_what_was_saved(small_disk: Path) -> None:
    folder = RunFolder(str(small_disk), "r").stage("pretrain")
    checkpointer = open_checkpoints(folder)
    checkpointer.save(state_at(1))
    checkpointer.wait()
    ballast = small_disk / "ballast"
    fill = ["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"]
    assert b"No space left" in subprocess.run(fill, capture_output=True, check=False).stderr

    checkpointer.save(state_at(2))
    wait_until(lambda: checkpointer.is_retrying)
    kept = newest_verified_step(folder)
    ballast.unlink()
    checkpointer.wait()

    assert kept == 1
    assert newest_verified_step(folder) == 2


def test_what_is_saved_below_a_mount_that_has_gone_counts_only_when_it_is_back(
    disk: StageFolder, tmp_path: Path
) -> None:
    checkpointer = open_checkpoints(disk)
    checkpointer.save(state_at(4))
    checkpointer.wait()
    mounted = Path(disk.run.path())
    mounted.rename(tmp_path / "away")
    mounted.mkdir()

    checkpointer.save(state_at(8))
    wait_until(lambda: checkpointer.is_retrying)
    assert list(mounted.iterdir()) == []
    mounted.rmdir()
    (tmp_path / "away").rename(mounted)
    checkpointer.wait()

    assert committed_steps(disk) == [4, 8]


def assert_set(event: threading.Event) -> None:
    assert event.wait(20)


def test_training_goes_on_beside_a_write_that_hangs_and_stops_when_it_has_for_long(
    disk: StageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    checkpointer = open_checkpoints(disk, patience_seconds=1.0)
    assert not checkpointer.cannot_save()

    checkpointer.save(state_at(4), before_commit=lambda: assert_set(may_end))
    assert not checkpointer.cannot_save(), "most writes end soon"
    monkeypatch.setattr(checkpoint, "SLOW_SECONDS", 0.0)
    wait_until(checkpointer.cannot_save)
    with pytest.raises(StorageError, match="has taken no checkpoint for 1 s, and says no error"):
        checkpointer.wait()

    may_end.set()
    wait_until(lambda: committed_steps(disk) == [4])
