"""Which network gloo takes; tests/faults/test_partition.py trains over one."""

import json
import os
from pathlib import Path

import psutil
import pytest
import ray

from nanoray.cluster.network import GLOO_INTERFACE, choose_interface, interface_of
from tests.faults.test_kill import arguments
from tests.running import Cluster, run_job


def test_an_interface_is_known_by_its_address():
    loopback = interface_of("127.0.0.1")

    assert loopback is not None
    assert "127.0.0.1" in {each.address for each in psutil.net_if_addrs()[loopback]}
    assert interface_of("192.0.2.1") is None  # an address of documentation, RFC 5737


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

    flags = [*arguments(tmp_path, "apart", 2, 20), "--max-restarts", 1]
    code, output = run_job("pretrain.py", *flags, env=env)

    assert code == 1
    assert output.count("the workers did not find each other: ") == 2, output
    assert "1 of 1; the group starts again from the beginning" in output
    assert "2 of 1; the run stops" in output
