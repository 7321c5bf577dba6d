"""Nothing that a job starts on one machine is reached from another one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from ray._private import ray_constants, services

from nanoray.cluster.loopback import answers_only_here, on_loopback
from tests.heads import running_head
from tests.running import ROOT, TINY, is_local, listeners, start_job, wait_for_step

CLUSTER = """
import ray
from nanoray.cluster import connection

@ray.remote
class Actor:
    def address(self):
        return ray.util.get_node_ip_address()

connection.connect()
actor = Actor.remote()
print(ray.get(actor.address.remote()), flush=True)
input()
"""


def test_a_node_is_at_the_loopback_for_as_long_as_it_is_asked_for():
    with on_loopback():
        inside = services.get_node_ip_address()

    assert inside == "127.0.0.1"
    assert ray_constants.ENABLE_RAY_CLUSTER


def test_a_cluster_of_the_network_is_told_from_one_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(services, "get_node_ip_address", lambda: "127.0.0.2")  # also ours
    with (
        socket.create_server(("127.0.0.1", 0)) as here,
        socket.create_server(("0.0.0.0", 0)) as everywhere,
    ):
        found = [
            answers_only_here(f"127.0.0.1:{here.getsockname()[1]}"),
            answers_only_here(f"127.0.0.1:{everywhere.getsockname()[1]}"),
            answers_only_here(f"192.0.2.1:{here.getsockname()[1]}"),
        ]

    assert found == [True, False, False]


@pytest.mark.cluster
def test_a_cluster_that_a_job_starts_for_itself_listens_on_the_loopback_only():
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**env, "RAY_AUTH_MODE": "token"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdin is not None
    assert job.stdout is not None
    try:
        address = job.stdout.readline().strip()
        listening = listeners(psutil.Process(job.pid))
    finally:
        job.communicate("\n", timeout=60)

    assert address == "127.0.0.1"
    expected = {"gcs_server", "raylet", "ray::Actor", "ray::DashboardAgent"}
    assert expected <= {name for name, _ in listening}
    assert {each for each in listening if not is_local(each[1])} == set()


@pytest.mark.cluster
@pytest.mark.slow
def test_workers_that_train_there_listen_on_the_loopback_only(tmp_path: Path):
    flags = ("--run", "r", "--storage", tmp_path, *TINY, "--num-workers", 2, "--num-steps", 100_000)
    job = start_job("pretrain.py", *flags, "--cpus-per-worker", 0.5)

    try:
        wait_for_step(job, tmp_path, "r", 5)
        listening = listeners(psutil.Process(job.pid))
    finally:
        job.terminate()
        job.communicate(timeout=120)

    assert sum(name.startswith("ray::RayTrainWorker") for name, _ in listening) >= 2, listening
    assert {each for each in listening if not is_local(each[1])} == set()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_head_that_is_started_as_the_documents_say_listens_on_the_loopback_only():
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    with running_head("--dashboard-host=127.0.0.1", **alone) as head:
        ran = head.job("submit", "--", "python", "-c", "import ray; ray.init(); print('it', 'ran')")
        listening = listeners(psutil.Process(head.process.pid))

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "it ran" in ran.stdout
    assert {"gcs_server", "raylet", "ray::DashboardAgent"} <= {name for name, _ in listening}
    assert {each for each in listening if not is_local(each[1])} == set()


def test_a_driver_that_computes_nothing_does_not_load_torch() -> None:
    look = "import sys, nanoray.cluster.connection; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout == "False\n", done.stderr
