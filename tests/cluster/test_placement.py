"""What runs where: a head without CPUs, and two nodes from the spot market."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors

from nanoray.cluster.connection import connect
from nanoray.cluster.loopback import on_loopback
from nanoray.cluster.placement import NODE_ID, ON_DEMAND, for_computing, for_lasting
from nanoray.ops.local_cluster import LocalCluster
from tests.driver import connected
from tests.running import TINY, Cluster, small_corpus, start_job, wait_for_step

SPOT = {"ray.io/market-type": "spot"}


@pytest.mark.cluster
def test_on_one_machine_everything_may_run_everywhere(ray_cluster: Cluster) -> None:
    with connected(ray_cluster):
        assert for_computing() == {}
        assert for_lasting() == {}


TWO_NODES = """
import ray
import nanoray.cluster.connection as connection
from nanoray.cluster.connection import Resources
from nanoray.cluster.placement import packing
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for _ in range(2):
    cluster.add_node(num_cpus=4, num_gpus=2)
connection.connect(cluster.address)
for workers, cpus in (((2, 2), 1.0), ((3, 3), 1.0), ((2, 2), 3.0), ((1, 2), 1.0)):
    print(packing(Resources(workers, True, cpus, 1, 1)))
print(packing(Resources((2, 2), False, 1.0, 1, 1)))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_workers_are_on_one_node_if_one_can_hold_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES], capture_output=True, text=True, timeout=180, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["STRICT_PACK", "PACK", "PACK", "PACK", "PACK"]


@pytest.fixture(scope="module")
def spot_cluster() -> Iterator[LocalCluster]:
    cluster = LocalCluster(0, cpus_per_node=3, head_labels=ON_DEMAND)
    for _ in range(2):
        cluster.add_node(labels=SPOT)
    connect(cluster.address)
    yield cluster
    cluster.stop()


class Where:
    """An actor that asks for nothing."""

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


def head_of_cluster() -> str:
    """Give the only node without CPUs."""
    (head,) = [node["NodeID"] for node in ray.nodes() if "CPU" not in node["Resources"]]
    return str(head)


def nodes_of(labels: dict[str, str], count: int = 6) -> set[str]:
    """Start actors that ask for no CPU; gives the nodes on which they came to be."""
    actor: Any = ray.remote(Where).options(
        num_cpus=0, scheduling_strategy="SPREAD", label_selector=labels
    )
    return set(ray.get([each.node.remote() for each in [actor.remote() for _ in range(count)]]))


@pytest.mark.slow
@pytest.mark.cluster
def test_what_asks_for_no_cpu_stays_off_the_head_or_on_it(spot_cluster: LocalCluster) -> None:
    head, spot = head_of_cluster(), {node["NodeID"] for node in ray.nodes()}
    spot.remove(head)

    assert for_computing() == {NODE_ID: f"!in({head})"}
    assert nodes_of(for_computing()) == spot
    assert nodes_of(for_lasting()) == {head}


@pytest.mark.slow
@pytest.mark.cluster
def test_drivers_and_coordinators_are_on_the_head_and_workers_on_spot_nodes(
    spot_cluster: LocalCluster, tmp_path: Path
) -> None:
    flags = [*TINY, "--storage", tmp_path, "--data", small_corpus(tmp_path / "data")]
    flags += ["--num-workers", 4, "--num-steps", 5000]
    job = start_job("pretrain.py", "--run", "r", *flags, env={"RAY_ADDRESS": spot_cluster.address})
    try:
        wait_for_step(job, tmp_path, "r", 3)
        where: dict[str, set[str]] = defaultdict(set)
        alive: list[Any] = [("state", "=", "ALIVE")]  # Any: a filter of Ray
        with on_loopback():
            actors = list_actors(spot_cluster.address, filters=alive, limit=1000)
        for actor in actors:
            where[actor.class_name].add(str(actor.node_id))
    finally:
        job.kill()
        job.communicate()

    workers = where.pop("RayTrainWorker")
    assert len(workers) == 2
    assert head_of_cluster() not in workers
    assert {"Monitor", "Pacer", "TrainController", "SplitCoordinator"} <= where.keys()
    assert set.union(*where.values()) == {head_of_cluster()}, dict(where)
