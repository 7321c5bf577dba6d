"""News of the workers: what they log, how far they are, whether they live, and why they failed."""

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.recovery import Cause, Failure
from nanoray.config import InputError, RunFailedError
from nanoray.data.feed import Actor
from nanoray.train.world import Wish

NAMESPACE = "nanoray"
BEAT_SECONDS = 1.0
"""A worker tells that it lives this often at most."""


@dataclass
class Beat:
    """The newest sign of life of one rank."""

    rank: int
    pid: int
    node: str
    """Ray's id of its node."""
    doing: str
    """What it did then."""
    age_seconds: float
    """How long ago that was."""
    is_training: bool
    """It has made a step since it started: from then on no silence is long."""


class Monitor:
    """An actor on the driver's node, to which workers and controller send their news."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []  # Any: JSON
        self.lines: list[str] = []
        self.beats: dict[int, tuple[float, Beat]] = {}
        self.failures: dict[int, Failure] = {}
        self.final_error: InputError | RunFailedError | None = None
        self.wish = Wish.NONE
        self.why_stop = ""
        self.has_started = False

    def node(self) -> str:
        """Give the node on which this is, and the driver."""
        node: str = ray.get_runtime_context().get_node_id()
        return node

    def step(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Note what a step did."""
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
        self.beats[beat.rank] = (time.monotonic(), beat)
        return self.wish

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

    def leave(self, rank: int) -> None:
        """Note that a rank has done its work, and need not be heard of again."""
        self.beats.pop(rank, None)

    def silences(self) -> list[Beat]:
        """Give each rank's newest sign of life, with its age."""
        now = time.monotonic()
        for told, beat in self.beats.values():
            beat.age_seconds = now - told
        return [beat for _, beat in self.beats.values()]

    def fail(self, failure: Failure, *, first_hand: bool) -> None:
        """Note why a rank ended; what it told itself holds over what Ray says of it."""
        if first_hand or failure.rank not in self.failures:
            self.failures[failure.rank] = failure

    def begin_start(self) -> list[Failure]:
        """Forget the workers of the last start; gives why they ended, empty at the first start."""
        failures, self.failures, self.beats = list(self.failures.values()), {}, {}
        if self.wish is Wish.GROW:
            self.wish = Wish.NONE
        if self.has_started and not failures:
            failures = [Failure(Cause.LOST, 0, "the workers could not be started")]
        self.has_started = True
        return failures

    def finish(self, error: InputError | RunFailedError) -> None:
        """Note the error that ends the run."""
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

    def __init__(self, monitor: Actor, rank: int) -> None:
        self.monitor, self.rank = monitor, rank
        self.pid, self.node = os.getpid(), ray.get_runtime_context().get_node_id()
        self.is_training = False
        self.wish = Wish.NONE
        self.last = 0.0
        self._answer: Any = None  # Any: a reference to a Wish

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        """Tell that this worker lives, if it has not done so within the last second."""
        starts_training = is_step and not self.is_training
        self.is_training |= is_step
        now = time.monotonic()
        if now - self.last < BEAT_SECONDS and not starts_training:
            return
        self.last = now
        beat = Beat(self.rank, self.pid, self.node, doing, 0.0, self.is_training)
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self.wish = ray.get(self._answer)
        self._answer = self.monitor.beat.remote(beat)


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
