"""Which network gloo takes; tests/faults/test_partition.py trains over one."""

import json
import os
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import ray
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is not in __all__

from nanoray.cluster.network import (
    GLOO_INTERFACE,
    choose_interface,
    interface_of,
    open_store,
)
from tests.faults.test_kill import arguments
from tests.running import Cluster, listeners, run_job


def test_an_interface_is_known_by_its_address():
    loopback = interface_of("127.0.0.1")

    assert loopback is not None
    assert "127.0.0.1" in {each.address for each in psutil.net_if_addrs()[loopback]}
    assert interface_of("192.0.2.1") is None  # an address of documentation, RFC 5737


def test_ranks_meet_at_a_store_on_the_loopback(monkeypatch: pytest.MonkeyPatch):
    def ours() -> set[str]:
        return {name for _, name in listeners(psutil.Process()) if name.endswith(f":{port}")}

    address, port = open_store()
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))
    dist.init_process_group("gloo", rank=0, world_size=1, timeout=timedelta(seconds=20))
    try:
        total = torch.ones(1)
        dist.all_reduce(total)
        while_joined = ours()
    finally:
        dist.destroy_process_group()

    assert total.item() == 1
    assert while_joined == {f"127.0.0.1:{port}"}


def test_two_groups_in_one_process_have_stores_of_their_own():
    [first, second] = [TCPStore(*open_store(), multi_tenant=True) for _ in range(2)]

    first.set("key", "first")

    assert second.check(["key"]) is False


def test_gloo_gets_the_interface_of_this_node(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GLOO_INTERFACE, "")  # so that what is set here is undone
    monkeypatch.delenv(GLOO_INTERFACE)

    choose_interface()

    assert os.environ.get(GLOO_INTERFACE) == interface_of(ray.util.get_node_ip_address())


def test_an_interface_that_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(GLOO_INTERFACE, "wireguard0")

    choose_interface()

    assert os.environ[GLOO_INTERFACE] == "wireguard0"


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_that_do_not_meet_are_started_again(ray_cluster: Cluster, tmp_path: Path):
    wrong = {"runtime_env": {"env_vars": {GLOO_INTERFACE: "nowhere0"}}}
    env = {**ray_cluster.environment(), "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(wrong)}

    # The cluster has room for one such group: none of the first may be left.
    flags = [*arguments(tmp_path, "apart", 2, 20), "--max-restarts", 1, "--cpus-per-worker", 3]
    code, output = run_job("pretrain.py", *flags, env=env)

    assert code == 1
    assert output.count("the workers did not find each other: ") == 2, output
    assert "1 of 1; the group starts again from the beginning" in output
    assert "2 of 1; the run stops" in output
