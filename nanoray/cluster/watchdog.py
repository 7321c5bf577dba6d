"""Finds workers that hang, writes down where, and kills them, so that the group starts again.

A rank that is stopped, or waits in a collective that nobody else enters, raises no error. It only
falls silent, and all ranks with it.
"""

import contextlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.inspection import process_stack
from nanoray.cluster.monitor import Beat
from nanoray.cluster.recovery import Cause, Failure
from nanoray.data.feed import Actor
from nanoray.data.plan import WAITING_FOR_DATA
from nanoray.storage_errors import first_line

logger = logging.getLogger(__name__)

START_SECONDS = 1800.0
"""By how much longer a start may be silent: weights are read, and the model is compiled. And ranks
that wait for one whose data do not come, which is as long as its reader is patient."""
MOST_AT_ONCE = 16
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
        self.checked = self.looked = 0.0
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
        patience = self.patience_with(beats)
        if any(beat.age_seconds > patience[beat.rank] for beat in beats) or self._finds_one(beats):
            self._heal(beats)

    def patience_with(self, beats: list[Beat]) -> dict[int, float]:
        """Say how long each rank may be silent.

        A rank whose data do not come says so, and the others wait for it in a collective, silently.
        """
        is_fed = not any(
            beat.doing == WAITING_FOR_DATA and beat.age_seconds < self.hang_seconds
            for beat in beats
        )
        return {
            beat.rank: self.hang_seconds
            if beat.is_training and is_fed
            else self.hang_seconds + START_SECONDS
            for beat in beats
        }

    def _finds_one(self, beats: list[Beat]) -> bool:
        """Look for a rank that is stopped among those that may be silent for longer."""
        silent = [beat for beat in beats if beat.age_seconds > self.hang_seconds]
        if not silent or time.monotonic() - self.looked < self.hang_seconds / 4:
            return False
        self.looked = time.monotonic()
        found = on_each_node(silent, read_statuses, [beat.pid for beat in silent])
        return psutil.STATUS_STOPPED in found

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
    found: list[Inspection] = on_each_node(
        beats, inspect_processes, [(beat.rank, beat.pid) for beat in beats]
    )
    return found


def on_each_node(beats: list[Beat], work: Any, arguments: list[Any]) -> list[Any]:
    """Call a function on the nodes of ranks, on all at once; gives what those give that answer.

    Args:
        beats: of the ranks.
        work: takes what `arguments` has for the ranks of a node, and gives a list.
        arguments: of each rank.
    """
    there: dict[str, list[Any]] = {}
    for beat, argument in zip(beats, arguments, strict=True):
        there.setdefault(beat.node, []).append(argument)
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:
        parts = pool.map(lambda node: on_node(node, work, there[node]) or [], sorted(there))
        return [each for part in parts for each in part]


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
        logger.warning("node %s does not answer: %s", node[:8], first_line(error))
        return None


def inspect_processes(processes: list[tuple[int, int]]) -> list[Inspection]:
    """Look at processes of this node, given as (rank, process id)."""
    with ThreadPoolExecutor(MOST_AT_ONCE) as pool:  # a stack may take ten seconds
        stacks = pool.map(process_stack, [pid for _, pid in processes])
        return [
            Inspection(rank, process_status(pid), stack)
            for (rank, pid), stack in zip(processes, stacks, strict=True)
        ]


def read_statuses(pids: list[int]) -> list[str]:
    """Say what the kernel says of processes of this node."""
    return [process_status(pid) for pid in pids]


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
