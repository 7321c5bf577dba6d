"""Processes in reserve, on nodes that have read nothing."""

import sys
import time
from collections.abc import Iterator

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.connection import connect
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Beat, Start, start_monitor
from nanoray.cluster.standby import LOOK_SECONDS, Standby
from nanoray.ops.local_cluster import LocalCluster


@pytest.fixture
def node() -> Iterator[str]:
    cluster = LocalCluster(num_nodes=0, cpus_per_node=1)
    try:
        added = cluster.add_node()
        connect(cluster.address)
        yield added
    finally:
        cluster.stop()


@pytest.mark.slow
@pytest.mark.cluster
def test_readers_find_their_process_when_a_group_trains(node: str) -> None:
    monitor = start_monitor("/runs/r", "1", on_this_node())
    ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
    standby = Standby(monitor)
    ready = []

    for is_training in (False, True):
        beat = Beat(1, 0, 1, 0.0, node, "step 1", 0.0, is_training=is_training)
        ray.get(monitor.beat.remote(beat))
        standby.looked -= LOOK_SECONDS
        standby.check()
        ready.append(node in standby.ready)
    deadline = time.monotonic() + 60
    while not has_imported(node):
        assert time.monotonic() < deadline
        time.sleep(0.5)

    assert ready == [False, True]


def has_imported(node: str) -> bool:
    """Say whether the next task there meets a process that readers can use at once."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    there = ray.remote(lambda: "nanoray.data.feed" in sys.modules).options(
        num_cpus=0, scheduling_strategy=where
    )
    found: bool = ray.get(there.remote())
    return found
