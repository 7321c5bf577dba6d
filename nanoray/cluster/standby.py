"""Processes in reserve: a group that starts again finds its readers' processes on every node.

Ray spreads the readers of a stream over the nodes. On one that has read nothing yet they have to
wait for a process, and for its imports, while the workers wait for them. Ray keeps idle processes.
"""

import time

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.monitor import Beat
from nanoray.data.feed import Actor, stand_by

LOOK_SECONDS = 5.0
PROCESSES = 2
"""On each node: one that reads, and one that cuts blocks."""
HOLD_SECONDS = 1.0
"""For which a process is busy, so that the next task gets another one."""


class Standby:
    """Brings such processes to the nodes of a cluster while one run trains."""

    def __init__(self, monitor: Actor) -> None:
        self.monitor = monitor
        self.looked = time.monotonic()
        self.ready: set[str] = set()

    def check(self) -> None:
        """Prepare the nodes that have joined since, if all ranks train; may be called often."""
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return
        self.looked = time.monotonic()
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        beats: list[Beat] = ray.get(self.monitor.silences.remote())
        # A single node has had the readers of the first start.
        if len(nodes) == 1 or not beats or not all(beat.is_training for beat in beats):
            return
        for node in nodes - self.ready:
            prepare(node)
        self.ready |= nodes


def prepare(node: str) -> None:
    """Have processes started on a node, and do not wait for them."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(stand_by).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    for _ in range(PROCESSES):
        task.remote(HOLD_SECONDS)
