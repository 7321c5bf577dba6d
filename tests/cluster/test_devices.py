"""What the devices of a cluster are called, whose price follows from that."""

import json
import os
import subprocess
import sys

import pytest

from nanoray.cluster.autoscaler import VARIABLE
from nanoray.cluster.connection import SMALL_MACHINE
from nanoray.cluster.devices import device_kind
from tests.driver import connected
from tests.running import ROOT, Cluster

A_NODE_WITH_GPUS = """
import ray
from nanoray.cluster.devices import device_kind, gpus_of
kinds = {"accelerator_type:H200": 1}
ray.init(address="local", num_cpus=1, num_gpus=2, resources=kinds, dashboard_port=0)
[node] = ray.nodes()
print(*gpus_of([node["NodeID"], "a node that is gone"]), device_kind())
"""


@pytest.mark.cluster
def test_the_gpus_of_a_node_are_what_ray_knows_them_as() -> None:
    env = {**os.environ, **SMALL_MACHINE, "RAY_raylet_start_wait_time_s": "120"}
    command = [sys.executable, "-c", A_NODE_WITH_GPUS]

    ran = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    assert ran.stdout.split() == ["h200", "gpu", "h200"], ran.stderr


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("resources", "kind"),
    [({}, "gpu"), ({"accelerator_type:B200": 1}, "b200")],
    ids=["unknown", "b200"],
)
def test_before_the_first_node_with_gpus_is_there_the_autoscaler_tells_their_kind(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch, resources: dict[str, int], kind: str
) -> None:
    types = {"big": {"resources": {"CPU": 64, "GPU": 8, **resources}}}
    with connected(ray_cluster):
        assert device_kind() == "cpu"
        monkeypatch.setenv(VARIABLE, json.dumps({"max_workers": 2, "available_node_types": types}))
        assert device_kind() == kind
