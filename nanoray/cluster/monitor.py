"""News of the workers: what they log, how far they are, whether they live, and why they failed."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.recovery import Cause, Failure
from nanoray.config import InputError, RunFailedError
from nanoray.data.feed import Actor
from nanoray.train.world import Wish

NAMESPACE = "nanoray"
OF_A_LOSS = (Cause.LOST, Cause.HANG)
"""What ranks fail with when a node leaves."""
BEAT_SECONDS = 1.0
"""A worker tells that it lives this often at most."""


@dataclass(frozen=True)
class Start:
    """What a group of workers begins with."""

    attempt: int
    """Counts the groups of a run; one with an older number was cut off."""
    step: int
    device_batch_size: int
    """Rows per forward pass."""
    driver: str | None = None
    """Who begins it."""


@dataclass
class Beat:
    """The newest sign of life of one rank."""

    attempt: int
    rank: int
    pid: int
    born: float
    """When the process began, as `psutil` has it: its number may be another's later."""
    node: str
    """Ray's id of its node."""
    doing: str
    """What it did then."""
    age_seconds: float
    """How long ago that was."""
    is_training: bool
    """It has made a step since it started: from then on no silence is long."""


class Monitor:
    """An actor on the driver's node, to which workers and controller send their news.

    Workers that were cut off and come back send theirs late: what an earlier attempt says of itself
    says nothing about the group that is there, and is dropped.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.steps: list[dict[str, Any]] = []  # Any: JSON
        self.lines: list[str] = []
        self.beats: dict[int, tuple[float, Beat]] = {}
        self.failures: dict[int, Failure] = {}
        self.final_error: InputError | RunFailedError | None = None
        self.wish = Wish.NONE
        self.why_stop = self.reserved_as = ""
        self.start: Start | None = None
        """Of the group that is there; None between two."""
        self.attempt = 0
        """The newest that this start of the run has taken."""
        self.dollars_per_hour = self.spent = 0.0
        """What the group costs that is there, and all of this start have cost until `counted`."""
        self.counted = clock()
        self.leaving_told = self.save_is_wanted = False
        self.device_batch_size = 0
        """Rows per forward pass that were decided after a failure; 0 before the first."""

    def node(self) -> str:
        """Give the node on which this is, and the driver."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def name_reservation(self, name: str) -> None:
        """Note under which name Ray holds the workers' resources."""
        self.reserved_as = name

    def reservation(self) -> str:
        """Give that name; empty before a worker has started."""
        return self.reserved_as

    def step(self, attempt: int, values: dict[str, Any]) -> None:  # Any: JSON
        """Note what a step did."""
        if self._is_there(attempt):
            self.steps.append(values)

    def log(self, line: str) -> None:
        """Note a line for the driver's log."""
        self.lines.append(line)

    def take(self) -> tuple[list[dict[str, Any]], list[str]]:  # Any: JSON
        """Give what has come since the last call."""
        steps, lines, self.steps, self.lines = self.steps, self.lines, [], []
        return steps, lines

    def beat(self, beat: Beat) -> Wish:
        """Note a sign of life; says what the group should do."""
        if not self._is_there(beat.attempt):
            return Wish.NONE
        self.beats[beat.rank] = (time.monotonic(), beat)
        if self.wish is Wish.NONE and beat.rank == 0 and self.save_is_wanted:
            self.save_is_wanted = False
            return Wish.SAVE
        return self.wish

    def ask_to_save(self, num_nodes: int) -> None:
        """Note that nodes of the group were told to leave: their loss is no surprise then."""
        self.leaving_told = self.save_is_wanted = True
        what = "a node" if num_nodes == 1 else f"{num_nodes} nodes"
        self.lines.append(f"{what} of this run will be taken away: saving, and training on")

    def ask_to_grow(self, num_workers: int) -> None:
        """Note that there is room for so many workers."""
        if self.wish is Wish.NONE:
            self.wish = Wish.GROW
        self.lines.append(f"there is room for {num_workers} workers: saving, and starting again")

    def ask_to_stop(self, why: str) -> None:
        """Note that the run shall save and stop, and for which reason."""
        self.wish, self.why_stop = Wish.STOP, why
        self.lines.append(f"{why}: saving, and stopping")

    def reason_to_stop(self) -> str:
        """Give the reason for which the run shall stop; empty where it shall not."""
        return self.why_stop

    def leave(self, attempt: int, rank: int) -> None:
        """Note that a rank has done its work, and need not be heard of again."""
        if self._is_there(attempt):
            self.beats.pop(rank, None)

    def silences(self) -> list[Beat]:
        """Give each rank's newest sign of life, with its age."""
        now = time.monotonic()
        for told, beat in self.beats.values():
            beat.age_seconds = now - told
        return [beat for _, beat in self.beats.values()]

    def watched(self) -> list[Beat]:
        """Give them as long as no rank has failed: after that Ray ends the group anyway."""
        return [] if self.failures else self.silences()

    def fail(self, attempt: int | None, failure: Failure, *, first_hand: bool) -> None:
        """Note why a rank ended: what it told itself holds over what Ray and watchdogs say.

        Ray's controller names no attempt, because it speaks of the group that is there.
        """
        if attempt is not None and not self._is_there(attempt):
            return
        self.hold(0.0)
        known = failure.rank in self.failures
        if not known or (first_hand and failure.cause is not Cause.HANG):
            self.failures[failure.rank] = failure

    def end_group(self) -> tuple[int, list[Failure]]:
        """Forget the group that was there; gives its attempt and why it ended.

        The attempt is 0 before the first group had one. Nothing is given for as long as the next
        group finds no room. From here until `begin_group` only Ray's controller is listened to.
        """
        start, failures = self.start, list(self.failures.values())
        self.start, self.failures, self.beats = None, {}, {}
        self.hold(0.0)
        if start is not None and not failures:
            failures = [Failure(Cause.LOST, 0, "the workers could not be started")]
        if not failures:
            return self.attempt, []
        if self.wish is Wish.GROW:
            self.wish = Wish.NONE
        if self.leaving_told and all(each.cause in OF_A_LOSS for each in failures):
            failures = [Failure(Cause.PREEMPTION, each.rank, each.summary) for each in failures]
        self.leaving_told = self.save_is_wanted = False
        return self.attempt, failures

    def take_rows(self, device_batch_size: int) -> None:
        """Note with how many rows per forward pass the next group shall begin."""
        self.device_batch_size = device_batch_size

    def rows(self, at_first: int) -> int:
        """Give that number; before anything was decided, the one of the first start."""
        return self.device_batch_size or at_first

    def begin_attempt(self, attempt: int) -> None:
        """Note the attempt of the next group, whose beginning may still fail."""
        self.attempt = attempt

    def begin_group(self, start: Start) -> None:
        """Note what the next group begins with: from here on it is listened to."""
        self.start, self.attempt = start, start.attempt

    def newest_start(self) -> Start | None:
        """Give what the group that is there begins with."""
        return self.start

    def _is_there(self, attempt: int) -> bool:
        """Say whether an attempt is that of the group that is there."""
        return self.start is not None and self.start.attempt == attempt

    def hold(self, dollars_per_hour: float) -> None:
        """Note what an hour of all that a group holds costs, which has its workers now.

        From the first failure of it until the next one has its workers, nothing is paid for.
        """
        self.spent, self.counted = self.dollars(), self.clock()
        self.dollars_per_hour = dollars_per_hour

    def dollars(self) -> float:
        """Give what the groups of this start have cost so far."""
        return self.spent + (self.clock() - self.counted) / 3600 * self.dollars_per_hour

    def finish(self, attempt: int | None, error: InputError | RunFailedError) -> None:
        """Note the error that ends the run; the driver's own is of no attempt."""
        if attempt is None or self._is_there(attempt):
            self.final_error = error

    def finished(self) -> InputError | RunFailedError | None:
        """Give that error."""
        return self.final_error


def start_monitor(folder: str, start: str, where: NodeAffinitySchedulingStrategy) -> Actor:
    """Start the monitor of a run, under a name by which other drivers find it.

    Args:
        folder: the run's.
        start: names this start of the run; later ones sort after it.
        where: the driver's node.
    """
    actor: Any = ray.remote(Monitor).options(
        num_cpus=0,
        scheduling_strategy=where,
        name=f"monitor of {folder} {start}",
        namespace=NAMESPACE,
    )
    monitor: Actor = actor.remote()
    return monitor


def find_monitor(folder: str) -> Actor | None:
    """Give the monitor of the newest start of a run, None where it does not run."""
    prefix = f"monitor of {folder} "
    named = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
    starts = sorted(name for name in named if name.startswith(prefix))
    try:
        found: Actor | None = ray.get_actor(starts[-1], NAMESPACE) if starts else None
    except ValueError:  # it has just ended
        return None
    return found


class Pulse:
    """Sends the signs of life of one worker, from the loop that trains: no thread of its own.

    A thread would go on beating for a loop that hangs in a collective.
    """

    def __init__(self, monitor: Actor, attempt: int, rank: int) -> None:
        self.monitor, self.attempt, self.rank = monitor, attempt, rank
        self.pid, self.born = os.getpid(), psutil.Process().create_time()
        self.node = ray.get_runtime_context().get_node_id()
        self.is_training = False
        self.wish = Wish.NONE
        self.must_save = False
        """Asked for once, until it is done."""
        self.last = 0.0
        self._answers: list[Any] = []  # Any: references to wishes

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        """Tell that this worker lives, if it has not done so within the last second."""
        starts_training = is_step and not self.is_training
        self.is_training |= is_step
        now = time.monotonic()
        if now - self.last < BEAT_SECONDS and not starts_training:
            return
        self.last = now
        who = (self.attempt, self.rank, self.pid, self.born, self.node)
        beat = Beat(*who, doing, 0.0, self.is_training)
        self.listen()
        self._answers.append(self.monitor.beat.remote(beat))

    def listen(self) -> None:
        """Take the answers that have come to earlier signs of life."""
        if not self._answers:
            return
        come, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
        wishes: list[Wish] = ray.get(come)
        for wish in wishes:
            self.must_save |= wish is Wish.SAVE
            self.wish = Wish.NONE if wish is Wish.SAVE else wish


class MonitorHandler(logging.Handler):
    """Sends log records of this process to the driver."""

    def __init__(self, monitor: Actor) -> None:
        super().__init__(logging.INFO)
        self.monitor = monitor

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self.monitor.log.remote(level + record.getMessage())


def forward_logs(monitor: Actor) -> None:
    """Send what nanoray logs in this process to the driver."""
    package = logging.getLogger("nanoray")
    package.setLevel(logging.INFO)
    package.handlers = [h for h in package.handlers if not isinstance(h, MonitorHandler)]
    package.addHandler(MonitorHandler(monitor))
