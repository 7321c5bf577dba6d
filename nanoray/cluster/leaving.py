"""Nodes that were told to leave: their run saves once more while they are there, and trains on."""

import time

import ray

from nanoray.cluster.monitor import Beat
from nanoray.data.feed import Actor

LOOK_SECONDS = 2.0
"""A notice comes 30 seconds before the end on Google Cloud, and two minutes before it on AWS."""


class Leaving:
    """Looks whether Ray drains a node on which a rank of one run is."""

    def __init__(self, monitor: Actor) -> None:
        self.monitor = monitor
        self.looked = time.monotonic()
        self.told: set[str] = set()

    def check(self) -> None:
        """Ask for a checkpoint, once for each node; may be called often."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        new = set(ray._private.state.state.get_draining_nodes() or {}) - self.told
        if not new:
            return
        beats: list[Beat] = ray.get(self.monitor.silences.remote())
        ours = {beat.node for beat in beats} & new
        if ours:
            self.told |= ours
            ray.get(self.monitor.ask_to_save.remote(len(ours)))
