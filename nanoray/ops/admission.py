"""Which trials of a sweep train at a time: all workers of a trial find room, or it waits.

Ray Tune books a trial's driver only, and its workers are asked for later, by Ray Train. Two trials
that each hold half of what they need would wait for each other for ever.
"""

import asyncio
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.data.feed import Actor


class Admission:
    """An async actor: trials wait in `enter` until there is room for them."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        """Workers that may train at a time."""
        self.inside: dict[str, int] = {}
        self.waiting: dict[str, int] = {}
        self.closed = ""
        self.changed = asyncio.Condition()

    async def enter(self, name: str, num_workers: int) -> str:
        """Return when a trial may train; why it may not any more, if so.

        A trial that is inside already has lost its driver, and takes its old place.
        """
        async with self.changed:
            self.waiting[name] = num_workers
            await self.changed.wait_for(lambda: bool(self.closed) or self._has_room(name))
            del self.waiting[name]
            if not self.closed:
                self.inside[name] = num_workers
            self.changed.notify_all()
            return self.closed

    def _has_room(self, name: str) -> bool:
        """Say whether a trial fits, and is the largest of those that wait and do."""
        free = self.num_slots - sum(n for other, n in self.inside.items() if other != name)
        fitting = [n for n in self.waiting.values() if n <= free]
        return self.waiting[name] == max(fitting, default=0)

    async def leave(self, name: str) -> None:
        """Give back the room of a trial; one that is not inside has none."""
        async with self.changed:
            self.inside.pop(name, None)
            self.changed.notify_all()

    async def close(self, why: str) -> None:
        """Let nobody in any more."""
        async with self.changed:
            self.closed = self.closed or why
            self.changed.notify_all()

    async def why_over(self) -> str:
        """Say why nobody trains and nobody will any more; empty as long as somebody may."""
        return "" if self.inside else self.closed

    async def names_inside(self) -> list[str]:
        """List the trials that train."""
        return list(self.inside)


def start_admission(num_slots: int) -> Actor:
    """Start the actor on this node: if that is lost, the sweep's driver is too."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    admission: Any = ray.remote(Admission).options(num_cpus=0, scheduling_strategy=here)
    actor: Actor = admission.remote(num_slots)
    return actor
