"""A head without CPUs, and nodes that come when a job asks for them: the story of one run.

Ray's own autoscaler decides; in place of a cloud, its fake provider starts nodes on this machine.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from nanoray.ops.local_cluster import HEALTH_CHECKS
from tests.heads import ADDRESS, Head, running_head
from tests.running import TINY, Cluster, current_step, process_title, read_run, run_job

HEAD_ID = "f" * 51 + "00000"
IDLE_MINUTES = 0.3
MOST_NODES = 3
STEPS = 500
AUTOSCALING = {
    "cluster_name": "fake",
    "max_workers": MOST_NODES,
    "idle_timeout_minutes": IDLE_MINUTES,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"{ADDRESS}:PORT",
        "head_node_id": HEAD_ID,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "spot": {
            "resources": {"CPU": 3, "object_store_memory": 150_000_000},
            "labels": {"ray.io/market-type": "spot"},
            "node_config": {},
            "min_workers": 0,
            "max_workers": MOST_NODES,
        },
    },
    "head_node_type": "ray.head.default",
    **{
        f"{who}_commands": []
        for who in ("setup", "initialization", "head_setup", "worker_setup", "head_start_ray")
    },
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "auth": {},
    "docker": {},
}


@pytest.fixture
def head() -> Iterator[Head]:
    """Start a head whose autoscaler looks every second."""
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        **HEALTH_CHECKS,
    }
    config = json.dumps(AUTOSCALING)  # which is YAML, too
    with running_head("--num-cpus", 0, autoscaling=config, **env) as started:
        yield started


def nodes(head: Head) -> list[str]:
    """List the nodes that live, without the head."""
    answer = head.get("/nodes?view=summary")
    answer.raise_for_status()
    states = [node["raylet"] for node in answer.json()["data"]["summary"]]
    living = [state["nodeId"] for state in states if state["state"] == "ALIVE"]
    return [node for node in living if node != HEAD_ID]


def wait_until(is_so: Callable[[], bool], what: str, head: Head, seconds: float = 240) -> float:
    """Wait for something, and give how long that took."""
    began = time.monotonic()
    while not is_so():
        assert time.monotonic() - began < seconds, f"{what}: {head.job('logs', 'story').stdout}"
        time.sleep(0.2)
    return time.monotonic() - began


def lose_a_node(head: Head) -> None:
    """Kill a raylet with a training worker, and all of its processes, as a cloud does."""
    family = psutil.Process(head.process.pid).children(recursive=True)
    raylets = [
        process
        for process in family
        if process.name() == "raylet"
        and any(process_title(p).startswith("ray::RayTrainWorker") for p in process.children())
    ]
    members = [raylets[0], *raylets[0].children(recursive=True)]
    for member in members:
        member.kill()


@pytest.mark.slow
@pytest.mark.cluster
def test_nodes_come_for_a_job_one_is_lost_another_comes_and_all_leave(
    head: Head, ray_cluster: Cluster, tmp_path: Path
) -> None:
    flags = [*TINY, "--data", head.folder / "data"]
    flags += ["--num-steps", STEPS, "--num-workers", 2, "--save-every", 20]
    assert nodes(head) == []
    times = {}

    command = ("python", "jobs/pretrain.py", "--run", "story", *flags, "--cpus-per-worker", 2)
    began = time.monotonic()
    submitted = head.job(
        "submit", "--working-dir", ".", "--submission-id", "story", "--no-wait", "--", *command
    )
    assert submitted.returncode == 0, submitted.stderr
    times["two nodes"] = wait_until(lambda: len(nodes(head)) == 2, "two nodes", head)
    wait_until(lambda: current_step(head.runs, "story") > 60, "sixty steps", head)
    times["sixty steps"] = time.monotonic() - began

    before = set(nodes(head))
    lose_a_node(head)
    lost_at = current_step(head.runs, "story")
    assert lost_at < STEPS / 2
    times["a new node"] = wait_until(lambda: len({*nodes(head)} - before) == 1, "a new node", head)
    wait_until(lambda: current_step(head.runs, "story") > lost_at + 21, "new steps", head)
    wait_until(lambda: is_over(head, "story"), "the end", head, seconds=400)
    times["all leave"] = wait_until(lambda: nodes(head) == [], "all leave", head)

    assert status(head, "story") == "SUCCEEDED", head.job("logs", "story").stdout
    assert times["all leave"] >= 60 * IDLE_MINUTES / 2
    calm = ("--run", "calm", "--storage", tmp_path, *flags)
    code, output = run_job("pretrain.py", *calm, env=ray_cluster.environment(), timeout=400)
    assert code == 0, output
    assert read_run(head.runs, "story") == read_run(tmp_path, "calm")
    print({what: f"{seconds:.0f} s" for what, seconds in times.items()})


def status(head: Head, job: str) -> str:
    """Ask for a job's status, without a process of Ray's command line for each time."""
    return str(head.get(f"/api/jobs/{job}").raise_for_status().json()["status"])


def is_over(head: Head, job: str) -> bool:
    """Say whether a job has ended."""
    return status(head, job) in ("SUCCEEDED", "FAILED", "STOPPED")
