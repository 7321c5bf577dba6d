"""What is decided about a group that has ended, while there may be no room for another one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from nanoray.cluster.decisions import Decisions
from nanoray.cluster.gauges import FailureGauge
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Start, start_monitor
from nanoray.cluster.recovery import Cause, Decision, Failure, RetryBudget
from nanoray.config import RunFailedError, RunStoppedError
from nanoray.data.feed import Actor
from tests.driver import connected
from tests.running import Cluster

pytestmark = pytest.mark.cluster

LOST = Failure(Cause.LOST, 1, "the actor died", "")
MEMORY = Failure(Cause.MEMORY, 0, "out of memory", "")
BUG = Failure(Cause.BUG, 0, "ValueError: no", "Traceback: line 7")


@pytest.fixture(scope="module", autouse=True)
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Actor]:
    monitor = start_monitor(str(tmp_path), "1", on_this_node())
    yield monitor
    ray.kill(monitor)


class Ended:
    """Groups that end one after the other, and what is decided about them."""

    def __init__(self, monitor: Actor) -> None:
        self.monitor, self.attempt = monitor, 0
        self.recorded: list[tuple[int, Cause, bool]] = []
        budget, counted = RetryBudget(5, 8), FailureGauge("r", "pretrain")
        self.decisions = Decisions(monitor, budget, lambda: 20, self.record, counted)

    def record(self, attempt: int, failure: Failure, decision: Decision) -> None:
        self.recorded.append((attempt, failure.cause, decision.again))

    def end(self, failure: Failure) -> None:
        """Let a group begin, and end with a failure."""
        self.attempt += 1
        ray.get(self.monitor.begin_group.remote(Start(self.attempt, 20, 8)))
        ray.get(self.monitor.fail.remote(self.attempt, failure, first_hand=True))

    def decide(self) -> None:
        self.decisions.before_worker_group_start(None)


def test_a_failure_is_told_once_however_often_ray_asks_for_room(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.decide()  # the first start
    ended.end(LOST)

    for _ in range(3):
        ended.decide()

    assert ended.recorded == [(1, Cause.LOST, True)]
    told = [line for line in ray.get(monitor.take.remote())[1] if "lost worker" in line]
    assert len(told) == 1
    assert "1 of 5; the group starts again from step 20" in told[0]


def test_a_run_that_stops_waits_for_no_workers(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.end(BUG)
    ended.decide()
    ended.end(BUG)

    with pytest.raises(RunFailedError, match="Traceback: line 7"):
        ended.decide()

    assert ended.recorded == [(1, Cause.BUG, True), (2, Cause.BUG, False)]
    assert "2 of 2; the run stops" in str(ray.get(monitor.finished.remote()))


def test_the_next_group_has_the_rows_that_were_decided(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.end(MEMORY)

    ended.decide()

    assert ray.get(monitor.rows.remote(8)) == 4


def test_a_run_that_was_asked_to_stop_says_what_is_saved(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.end(Failure(Cause.STOP, 0, "step 20 is saved", ""))
    ray.get(monitor.ask_to_stop.remote("the cost has reached 5 dollars"))

    with pytest.raises(RunStoppedError, match=r"5 dollars\. Step 20 is saved; the same"):
        ended.decide()

    assert ended.recorded == []
