"""Room for more workers in an elastic run: found by the driver, used after a checkpoint.

Ray Train would resize a group by itself, without a word to it, and all steps since the newest
checkpoint would have to be made again. So it is kept from looking, the driver looks instead,
and rank 0, when it hears of room, saves and then ends the group, which costs no step.
"""

import time
from typing import Any

import ray

from nanoray.cluster.connection import Resources
from nanoray.cluster.reservations import CALL_SECONDS, Reservations, find_coordinator
from nanoray.cluster.turns import Turn
from nanoray.data.feed import Actor

NEVER_SECONDS = 1e9
"""Ray Train's own interval for resizing a group that trains."""
LOOK_SECONDS = 10.0


class Growth:
    """Looks for room for more workers of one run."""

    def __init__(
        self, monitor: Actor, reservations: Reservations, resources: Resources, turn: Turn
    ) -> None:
        self.monitor, self.reservations, self.resources = monitor, reservations, resources
        self.turn = turn
        self.looked = time.monotonic()
        self.asked_for = 0
        """Workers of the last request, until so many came: fewer are not asked again."""

    def check(self) -> None:
        """Ask the workers to start again if more of them could; may be called often."""
        low, high = self.resources.num_workers
        if low == high or time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        ranks = ray.get(self.monitor.silences.remote())
        if not ranks or not all(rank.is_training for rank in ranks):
            return
        if len(ranks) >= self.asked_for:
            self.asked_for = 0
        if len(ranks) >= high:
            return
        high = min(high, self.turn.most_workers())
        room = min(high, count_workers(self._reserved(), self.resources.each()))
        if room <= len(ranks):
            self.asked_for = 0
        elif not self.asked_for:
            self.asked_for = room
            ray.get(self.monitor.ask_to_grow.remote(room))

    def _reserved(self) -> dict[str, dict[str, float]]:
        """Give what Ray holds for this run on each node, after a look at the nodes."""
        coordinator, name = find_coordinator(), self.reservations.of_training()
        if coordinator is None or name is None:
            return {}
        found = coordinator.get_reserved_resources.remote(name, recompute=True)
        reserved: dict[str, dict[str, float]] = ray.get(found, timeout=CALL_SECONDS)
        return reserved


def count_workers(reserved: dict[str, dict[str, Any]], each: dict[str, float]) -> int:
    """Count the workers that find room, as Ray Train counts them at the next start."""
    return sum(
        int(min(have.get(name, 0.0) // need for name, need in each.items()))
        for have in reserved.values()
    )
