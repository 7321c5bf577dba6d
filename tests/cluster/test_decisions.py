"""What is decided about a group that has ended, while there may be no room for another one."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.controller.state import RestartingState, RunningState
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError

from nanoray.cluster import decisions
from nanoray.cluster.decisions import Decisions
from nanoray.cluster.gauges import FailureGauge
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Start, start_monitor
from nanoray.cluster.recovery import Cause, Decision, Failure, RetryBudget
from nanoray.config import RunFailedError, RunReplacedError, RunStoppedError
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
    """Give a monitor, to which this process sends its log for as long as it lives."""
    package = logging.getLogger("nanoray")
    level, handlers = package.level, package.handlers
    monitor = start_monitor(str(tmp_path), "1", on_this_node())
    yield monitor
    package.setLevel(level)
    package.handlers = handlers
    ray.kill(monitor)


class Ended:
    """Groups that end one after the other, and what is decided about them."""

    def __init__(self, monitor: Actor, max_restarts: int = 5) -> None:
        self.monitor, self.attempt = monitor, 0
        self.recorded: list[tuple[int, Cause, bool]] = []
        budget, counted = RetryBudget(max_restarts, 8), FailureGauge("r", "pretrain")
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


def test_a_wish_to_stop_is_heard_while_there_is_no_room(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.end(LOST)
    ended.decide()
    ray.get(monitor.ask_to_stop.remote("the time is over"))

    with pytest.raises(RunStoppedError, match="the time is over"):
        ended.decide()


def test_a_run_that_another_start_has_is_not_said_to_go_on(monitor: Actor) -> None:
    ended = Ended(monitor)
    ended.end(Failure(Cause.REPLACED, 0, "attempt 2 has replaced attempt 1", ""))
    replaced = RunReplacedError("runs/r", 1, 2, "process 7 on b")
    ray.get(monitor.finish.remote(1, replaced))
    ray.get(monitor.ask_to_stop.remote("the cost has reached 5 dollars"))

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        ended.decide()

    assert ended.recorded == [], "the other start writes the events now"


def test_starts_that_fail_before_they_have_begun_are_counted_to_their_limit(
    monitor: Actor,
) -> None:
    ended = Ended(monitor, max_restarts=2)

    def start() -> None:
        with ended.decisions.on_worker_group_start():
            ended.decide()
            died = ActorDiedError()
            raise WorkerGroupStartupFailedError("at least one failed to initialize") from died

    for _ in range(3):
        with pytest.raises(WorkerGroupStartupFailedError):
            start()
    with pytest.raises(RunFailedError, match="3 of 2; the run stops"):
        start()

    assert ended.recorded == [(0, Cause.LOST, again) for again in (True, True, False)]
    [line, *_] = [line for line in ray.get(monitor.take.remote())[1] if "lost worker" in line]
    assert "could not be started: ActorDiedError: The actor died" in line


def test_an_elastic_group_without_room_for_its_least_is_decided_about(
    monitor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decisions, "NEWS_SECONDS", 0.05)
    monkeypatch.setattr(decisions, "TURN_SECONDS", 0.1)
    ended = Ended(monitor)
    ended.end(LOST)
    running, waiting = RunningState(), RestartingState(ControllerError(LookupError()))
    tell = ended.decisions.after_controller_state_update

    tell(running, running)
    tell(running, waiting)
    tell(waiting, waiting)
    assert ended.recorded == [], "the ranks may still tell why they ended"
    for _ in range(3):
        tell(waiting, waiting)

    assert ended.recorded == [(1, Cause.LOST, True)]


def test_a_worker_that_dies_as_it_gets_its_work_is_started_again(monitor: Actor) -> None:
    policy = DefaultFailurePolicy(FailureConfig(max_failures=-1))
    died = ControllerError(ActorDiedError())

    Ended(monitor).decide()

    assert policy.make_decision(died) is FailureDecision.RETRY
    other = ControllerError(RunFailedError("no"))
    assert policy.make_decision(other) is FailureDecision.RAISE


def test_without_its_monitor_a_run_ends(monitor: Actor) -> None:
    ended = Ended(monitor)
    ray.kill(monitor)

    with pytest.raises(RunFailedError, match="what the driver watches its run with has ended"):
        ended.decide()
