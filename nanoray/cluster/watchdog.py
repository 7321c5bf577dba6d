"""Finds workers that hang, writes down where, and kills them, so that the group starts again.

A rank that is stopped, or waits in a collective that nobody else enters, raises no error. It only
falls silent, and all ranks with it.
"""

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.inspection import process_stack
from nanoray.cluster.monitor import Beat
from nanoray.cluster.recovery import Cause, Failure
from nanoray.data.feed import Actor

logger = logging.getLogger(__name__)

START_SECONDS = 1800.0
"""A start may be silent for this long: weights are read, and the model is compiled."""
CHECK_SECONDS = 4.0
CLOCK_SECONDS = 60.0
"""By how much a process may seem younger than it is: `psutil` adds the time since the machine's
start to a clock that may have been set since."""
NODE_SECONDS = 30
"""How long a node may take to answer; one that does not is left to Ray's own health checks."""


@dataclass(frozen=True)
class Inspection:
    """What a silent worker was found doing."""

    rank: int
    status: str
    """As the kernel has it: stopped, sleeping, running, gone."""
    stack: str
    """Of all its threads, by py-spy."""


class Watchdog:
    """Watches the signs of life of a group."""

    def __init__(self, monitor: Actor, hang_seconds: float) -> None:
        self.monitor, self.hang_seconds = monitor, hang_seconds
        self.checked = 0.0
        self.to_kill: list[Beat] = []
        """Of ranks that were found stuck, on nodes that did not answer."""

    def check(self) -> None:
        """Kill what hangs, if anything does; may be called as often as one likes."""
        if time.monotonic() - self.checked < CHECK_SECONDS:
            return
        self.checked = time.monotonic()
        if self.to_kill:
            start = ray.get(self.monitor.newest_start.remote())
            attempt = start.attempt if start else 0
            self.to_kill = kill_workers([b for b in self.to_kill if b.attempt == attempt])
        beats: list[Beat] = ray.get(self.monitor.watched.remote())
        if any(beat.age_seconds > self._patience(beat) for beat in beats):
            self._heal(beats)

    def _patience(self, beat: Beat) -> float:
        """Say how long a rank may be silent."""
        return self.hang_seconds if beat.is_training else max(self.hang_seconds, START_SECONDS)

    def _heal(self, beats: list[Beat]) -> None:
        """Write down where every rank stands, and kill those that are stuck."""
        found = inspect_group(beats)
        for each in found:
            beat = next(beat for beat in beats if beat.rank == each.rank)
            logger.warning(
                "rank %d is %s, silent for %.0f s since: %s\n%s",
                each.rank,
                each.status,
                beat.age_seconds,
                beat.doing,
                each.stack,
            )
        # A stopped rank holds up all others. Where none is, it cannot be told from outside who
        # waits for whom, and all of them start again anyway.
        stuck = {each.rank for each in found if each.status == psutil.STATUS_STOPPED}
        victims = [beat for beat in beats if not stuck or beat.rank in stuck]
        for beat in victims:
            why = f"silent for {beat.age_seconds:.0f} s since: {beat.doing}"
            failure = Failure(Cause.HANG, beat.rank, why)
            ray.get(self.monitor.fail.remote(beat.attempt, failure, first_hand=True))
        for beat in beats:
            ray.get(self.monitor.leave.remote(beat.attempt, beat.rank))
        self.to_kill = kill_workers(victims)


def inspect_group(beats: list[Beat]) -> list[Inspection]:
    """Look at each rank's process on its node."""
    found: list[Inspection] = []
    for node in sorted({beat.node for beat in beats}):
        there = [(beat.rank, beat.pid) for beat in beats if beat.node == node]
        found += on_node(node, inspect_processes, there) or []
    return found


def kill_workers(beats: list[Beat]) -> list[Beat]:
    """End processes as `kill -9` does, which a stopped process cannot put off.

    Returns:
        Those of nodes that did not answer.
    """
    left = []
    for node in sorted({beat.node for beat in beats}):
        there = [beat for beat in beats if beat.node == node]
        if on_node(node, kill_processes, [(beat.pid, beat.born) for beat in there]) is None:
            left += there
    return left


def on_node(node: str, work: Any, argument: Any) -> Any:  # Any: a function, and what it takes
    """Call a function on a node; gives None where the node does not answer."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    try:
        return ray.get(task.remote(argument), timeout=NODE_SECONDS)
    except ray.exceptions.RayError as error:
        logger.warning("node %s does not answer: %s", node[:8], str(error).splitlines()[0])
        return None


def inspect_processes(processes: list[tuple[int, int]]) -> list[Inspection]:
    """Look at processes of this node, given as (rank, process id)."""
    return [Inspection(rank, process_status(pid), process_stack(pid)) for rank, pid in processes]


def process_status(pid: int) -> str:
    """Say what the kernel says of a process."""
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return "gone"


def kill_processes(processes: list[tuple[int, float]]) -> bool:
    """End processes of this node, given with the time at which they began; gives True.

    A number may be that of a stranger by now, which then began later.
    """
    for pid, born in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.create_time() - born < CLOCK_SECONDS:
                process.kill()
    return True
