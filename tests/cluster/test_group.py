"""Groups of real workers: what comes back from them, and what starts them again."""

import io
import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.data import DataIterator, Dataset
from ray.exceptions import ActorDiedError

from nanoray.cluster.connection import Resources
from nanoray.cluster.deadline import Allowance
from nanoray.cluster.group import Group, RayWorld, run_on_workers
from nanoray.cluster.monitor import Start
from nanoray.cluster.recovery import Decision, Failure
from nanoray.config import (
    DataError,
    InputError,
    RunFailedError,
    RunReplacedError,
    RunStoppedError,
    StorageError,
)
from nanoray.data.blocks import Layout
from nanoray.data.feed import start_pacer
from nanoray.progress import RunDisplay
from nanoray.storage import RunFolder
from nanoray.train.world import AskedToStopError, Wish
from tests.driver import connected
from tests.running import Cluster

pytestmark = pytest.mark.cluster

LAYOUT = Layout(rows_per_step=8, rows_per_block=4)
TWO_WORKERS = Resources((2, 2), False, 1.0, 3, 1)
LATE_SECONDS = 20.0
"""After which a worker hears at the latest what it is asked for, on a busy machine."""
POSITION = {"data/position": 5, "data/row": 2}

logger = logging.getLogger("nanoray.tested")


@pytest.fixture(scope="module", autouse=True)
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@ray.remote
def read_bad_text() -> None:
    raise DataError("a.parquet is empty. Leave it out.")


@dataclass(frozen=True)
class Story:
    """What a group goes through; each start is counted in a file."""

    folder: Path
    ending: str = "well"
    """How the workers end, or, of some endings, only those of the first start."""

    @property
    def starts(self) -> int:
        return len(list(self.folder.glob("start-*")))

    def take_attempt(self, driver: str, after: int) -> int:
        assert after == self.starts
        return after + 1

    def begin(self, attempt: int) -> tuple[int, Dataset]:
        if self.ending == "nothing to begin with":
            raise InputError("There is no shard. Give one.")
        (self.folder / f"start-{self.starts}").touch()
        if self.ending == "no pacer":
            raise ActorDiedError()
        logger.info("start %d begins", attempt)
        return 0, ray.data.range(8)

    def record_begin(self, start: Start, devices: list[str]) -> float:
        (self.folder / f"devices-{self.starts}").write_text(",".join(devices))
        return 3600.0 * len(devices)

    def record(self, attempt: int, failure: Failure, decision: Decision) -> None:
        if self.ending == "replaced":
            raise RunReplacedError(str(self.folder), attempt, attempt + 1, "process 7 on b")
        assert attempt == self.starts
        told = self.folder / f"failure-{len(list(self.folder.glob('failure-*')))}"
        told.write_text(f"{failure.cause} on rank {failure.rank}, again: {decision.again}")

    def stop_when_asked(self, world: RayWorld) -> None:
        """Go on until rank 0 is asked to stop; tells for how long the group was held."""
        began = (self.folder / f"devices-{self.starts}").stat().st_mtime
        while world.wish() is not Wish.STOP:
            world.beat("waiting")
            time.sleep(0.05)
        (self.folder / f"held-{world.rank}").write_text(f"{time.time() - began}")
        raise AskedToStopError("step 0 is saved")

    def work(self, world: RayWorld, shard: DataIterator) -> dict[str, Any]:
        logger.info("start %d has %d rows", world.start.attempt, world.start.device_batch_size)
        if self.ending == "asked to stop":
            self.stop_when_asked(world)
        if self.ending == "bad data" and world.rank == 1:
            raise DataError("a.parquet is empty. Leave it out.")
        if self.ending == "bad text" and world.rank == 1:
            ray.get(read_bad_text.remote())
        if self.ending == "outage" and world.rank == 0:
            raise StorageError("runs could not be written for 1800 s. Mend the storage.")
        if self.ending == "fault" and world.rank == 1:
            raise ZeroDivisionError("a fault of ours")
        if self.ending == "too large" and self.starts < 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.ending == "always killed" and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.ending == "replaced" and world.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.ending == "killed" and self.starts == 1 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        logger.warning("rank %d of %d is here", world.rank, world.world_size)
        if world.rank == 0:
            world.report(7, {"step": 7, "train/loss": 1.25, **POSITION})
        return {"rank": world.rank, "threads": torch.get_num_threads(), "device": world.device.type}


@dataclass
class Ran:
    """A group that has come to its end."""

    result: object
    shown: str
    pacer: Any


def run(
    story: Story,
    max_restarts: int = 5,
    resources: Resources = TWO_WORKERS,
    allowance: Allowance | None = None,
) -> Ran:
    shown = io.StringIO()
    group = Group(
        stage="pretrain",
        worker=story.work,
        take_attempt=story.take_attempt,
        begin=story.begin,
        pacer=start_pacer(LAYOUT, 2, 1),
        resources=resources,
        max_restarts=max_restarts,
        newest_step=lambda: 0,
        record_begin=story.record_begin,
        record=story.record,
        device_batch_size=8,
        hang_seconds=60,
        allowance=allowance,
    )
    display = RunDisplay(7, log_every=1, stream=shown)
    result = run_on_workers(group, RunFolder(str(story.folder), "r"), display)
    return Ran(result, shown.getvalue(), group.pacer)


@pytest.fixture(scope="module")
def well(ray_connection, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Give a run in which nothing happens."""
    return run(Story(tmp_path_factory.mktemp("well")))


@pytest.mark.slow
def test_the_result_is_that_of_rank_0_which_has_its_threads(well: Ran):
    assert well.result == {"rank": 0, "threads": 3, "device": "cpu"}


def test_what_workers_and_controller_log_reaches_the_driver(well: Ran):
    lines = [line.partition(" ")[2] for line in well.shown.splitlines()]

    assert "start 1 begins" in lines
    assert "start 1 has 8 rows" in lines
    assert "warning: rank 0 of 2 is here" in lines
    assert "warning: rank 1 of 2 is here" in lines


def test_what_rank_0_reports_reaches_the_display_and_the_readers(well: Ran):
    rows_to_unit_5 = ray.get(well.pacer.rows_before.remote(5))

    assert "step 7/7  loss 1.2500" in well.shown
    assert rows_to_unit_5 == -2, "the consumers stand at row 2 of unit 5"


@pytest.mark.slow
def test_a_range_on_fewer_workers_is_recorded_and_charged_as_these(tmp_path):
    story = Story(tmp_path, "asked to stop")
    only_two_fit = Resources((1, 4), False, 3.0, 1, 1)

    with pytest.raises(RunStoppedError, match="the money is spent"):
        run(story, resources=only_two_fit, allowance=Allowance(2.0, "the money is spent"))

    assert (tmp_path / "devices-1").read_text() == "cpu,cpu"
    [told] = tmp_path.glob("held-*")
    assert 1 <= float(told.read_text()) < 1 + LATE_SECONDS, "two dollars at 3600 an hour each"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["bad data", "bad text"])
def test_wrong_input_that_a_worker_finds_is_raised_as_such_and_not_tried_again(tmp_path, ending):
    story = Story(tmp_path, ending)

    with pytest.raises(DataError) as raised:
        run(story)

    assert str(raised.value) == "a.parquet is empty. Leave it out."
    assert story.starts == 1


@pytest.mark.slow
def test_storage_that_failed_for_too_long_ends_the_run_with_its_own_sentence(tmp_path):
    story = Story(tmp_path, "outage")

    with pytest.raises(StorageError, match=r"^runs could not be written for 1800 s\."):
        run(story)

    assert story.starts == 1


@pytest.mark.slow
def test_wrong_input_at_the_beginning_is_raised_as_such(tmp_path):
    with pytest.raises(InputError, match=r"^There is no shard\. Give one\.$"):
        run(Story(tmp_path, "nothing to begin with"))


@pytest.mark.proof
def test_a_fault_in_the_code_is_tried_twice_and_told_with_its_line_first(tmp_path):
    story = Story(tmp_path, "fault")

    with pytest.raises(RunFailedError) as raised:
        run(story)

    first, *traceback = str(raised.value).splitlines()
    assert first.startswith("error in the code on rank 1 (ZeroDivisionError: a fault of ours, at ")
    assert "test_group.py" in first
    assert 'raise ZeroDivisionError("a fault of ours")): 2 of 2; the run stops' in first
    assert traceback[0] == "Traceback (most recent call last):"
    assert story.starts == 2


@pytest.mark.slow
def test_a_start_that_fails_before_it_has_begun_is_told_and_not_repeated_for_ever(tmp_path):
    story = Story(tmp_path, "no pacer")

    with pytest.raises(RunFailedError, match="could not be started: ActorDiedError: The actor"):
        run(story, max_restarts=1)

    assert story.starts == 2
    assert len(list(tmp_path.glob("failure-*"))) == 2


@pytest.mark.proof
def test_a_killed_worker_makes_the_group_start_again(tmp_path):
    story = Story(tmp_path, "killed")

    ran = run(story)

    assert ran.result == {"rank": 0, "threads": 3, "device": "cpu"}
    assert "start 2 begins" in ran.shown
    assert ran.shown.count("lost worker on rank 1") == 1
    [told] = tmp_path.glob("failure-*")
    assert told.read_text() == "lost worker on rank 1, again: True"
    assert ": 1 of 5; the group starts again from the beginning" in ran.shown
    assert story.starts == 2


@pytest.mark.slow
def test_a_run_that_another_start_has_taken_over_is_not_taken_back(tmp_path):
    story = Story(tmp_path, "replaced")

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        run(story)

    assert story.starts == 1
    assert list(tmp_path.glob("failure-*")) == [], "the other start writes the events now"


@pytest.mark.slow
def test_workers_that_never_get_on_end_the_run(tmp_path):
    story = Story(tmp_path, "always killed")

    with pytest.raises(RunFailedError, match="2 of 1; the run stops, because no checkpoint was"):
        run(story, max_restarts=1)

    assert story.starts == 2


@pytest.mark.slow
def test_a_group_out_of_memory_starts_again_with_half_the_device_batch(tmp_path):
    ran = run(Story(tmp_path, "too large"))

    assert "start 2 has 4 rows" in ran.shown
    assert "start 3 has 2 rows" in ran.shown
    assert "the device batch goes from 8 to 4 rows, the global batch stays" in ran.shown
