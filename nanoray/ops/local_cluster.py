"""Several Ray nodes on this machine, for it alone: a cluster that can lose one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._common.utils import get_ray_address_file
from ray.cluster_utils import Cluster

from nanoray.cluster.connection import SMALL_MACHINE
from nanoray.cluster.loopback import on_loopback

OBJECT_STORE_BYTES = 2**28
HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that answers nothing is given up after 9 s, as docs/runbook.md recommends."""


class LocalCluster:
    """A head without CPUs for drivers, and nodes for workers, each with processes of its own."""

    def __init__(
        self, num_nodes: int, cpus_per_node: int, head_labels: dict[str, str] | None = None
    ) -> None:
        self.cpus_per_node = cpus_per_node
        for name, value in {**HEALTH_CHECKS, **SMALL_MACHINE}.items():
            os.environ.setdefault(name, value)
        with unnoted(), on_loopback():
            self._cluster = Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "labels": head_labels or {},
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "include_dashboard": True,
                    "dashboard_port": 0,
                },
            )
        for _ in range(num_nodes):
            self.add_node()

    @property
    def address(self) -> str:
        """Where drivers find it."""
        return str(self._cluster.address)

    def add_node(self, labels: dict[str, str] | None = None) -> str:
        """Start one more node, and give its id."""
        with on_loopback():
            node = self._cluster.add_node(
                num_cpus=self.cpus_per_node,
                object_store_memory=OBJECT_STORE_BYTES,
                labels=labels or {},
            )
        return str(node.node_id)

    def stop(self) -> None:
        """End all processes of the cluster."""
        if ray.is_initialized():
            ray.shutdown()
        self._cluster.shutdown()


@contextlib.contextmanager
def unnoted() -> Iterator[None]:
    """Keep a cluster that is started here from being the one that other commands find."""
    note = Path(get_ray_address_file(None))
    before = note.read_text() if note.exists() else None
    try:
        yield
    finally:
        if before is not None:
            note.write_text(before)
        else:
            note.unlink(missing_ok=True)
