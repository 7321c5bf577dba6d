"""A node that Ray drains, as after a notice of a spot market."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.connection import connect
from nanoray.cluster.group import on_this_node
from nanoray.cluster.leaving import LOOK_SECONDS, Leaving
from nanoray.cluster.monitor import Beat, Monitor, Start, start_monitor
from nanoray.data.feed import Actor
from nanoray.ops.local_cluster import LocalCluster
from nanoray.train.world import Wish

DRAIN = (sys.executable, "-m", "ray.scripts.scripts", "drain-node")
NOTICE = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "notice")


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    cluster = LocalCluster(num_nodes=0, cpus_per_node=1)
    try:
        added = [cluster.add_node() for _ in range(2)]
        connect(cluster.address)
        yield added
    finally:
        cluster.stop()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_is_asked_to_save_once_when_a_node_of_its_own_is_to_leave(nodes: list[str]) -> None:
    own, other = nodes
    workers = [work_on(node) for node in nodes]  # a node without work leaves at once
    monitor = start_monitor("/runs/r", "1", on_this_node())
    ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
    leaving = Leaving(monitor)
    told = []

    for node in (other, own, own):
        drain(node)
        ray.get(monitor.beat.remote(Beat(1, 0, 1, 0.0, own, "step 3", 0.0, is_training=True)))
        leaving.looked -= LOOK_SECONDS
        leaving.check()
        beat = Beat(1, 0, 1, 0.0, own, "step 4", 0.0, is_training=True)
        told.append(ray.get(monitor.beat.remote(beat)))

    assert ray.get([worker.node.remote() for worker in workers]) == nodes
    assert told == [Wish.NONE, Wish.SAVE, Wish.NONE]


def work_on(node: str) -> Actor:
    """Put an actor on a node."""
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = ray.remote(Monitor)  # Any: Ray's
    worker: Actor = actor.options(num_cpus=1, scheduling_strategy=where).remote()
    ray.get(worker.node.remote())
    return worker


def drain(node: str) -> None:
    """Give a node notice, and wait until everybody knows."""
    address = ray.get_runtime_context().gcs_address
    given = ("--address", address, "--node-id", node, "--deadline-remaining-seconds", "300")
    env = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as the cluster was started
    subprocess.run([*DRAIN, *given, *NOTICE], check=True, capture_output=True, env=env)
    deadline = time.monotonic() + 30
    while node not in ray._private.state.state.get_draining_nodes():
        assert time.monotonic() < deadline
        time.sleep(0.2)
