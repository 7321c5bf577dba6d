"""Which cluster a job finds, and what it takes of it."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray._private import services

from nanoray.cluster.connection import (
    NotEnoughResourcesError,
    Resources,
    absolute_address,
    choose_resources,
    cluster_total,
    launch_folder,
    shorten_messages,
    started_cluster,
)
from nanoray.config import InputError, RunConfig
from tests.driver import connected
from tests.running import ROOT, Cluster

CONNECT = """
import os
from nanoray.cluster import connection
from nanoray.config import InputError
try:
    connection.connect()
except InputError as error:
    print("refused:", error)
else:
    import ray
    connection.connect()
    cpus = int(connection.cluster_total()["CPU"])
    print("connected:", ray.get_runtime_context().gcs_address, "with", cpus, "CPUs")
"""


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give Ray a folder of its own, with a path short enough for its sockets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    forget_addresses()
    yield folder
    shutil.rmtree(folder)


def forget_addresses() -> None:
    """Let Ray look for clusters again: it remembers those it has seen."""
    find: Any = services.find_gcs_addresses  # Any: its cache has no type
    find.cache_clear()


def note_started(ray_folder: Path, address: str) -> None:
    """Leave the note that `ray start` leaves."""
    (ray_folder / "ray").mkdir()
    (ray_folder / "ray" / "ray_current_cluster").write_text(address)


def connect(**env: str) -> str:
    """Connect as a job does, in a process of its own; gives what it said."""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", CONNECT],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def has(
    monkeypatch: pytest.MonkeyPatch,
    now: dict[str, float],
    most: dict[str, int],
    num_nodes: int = 1,
) -> None:
    """Let Ray say that a cluster of equal nodes has these resources, and at its maximum those."""
    state = ray._private.state.state
    each = {name: amount / num_nodes for name, amount in now.items()}
    nodes = [{"Alive": True, "Resources": each}] * num_nodes
    monkeypatch.setattr(ray, "cluster_resources", lambda: now)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(state, "get_max_resources_from_cluster_config", lambda: most)
    here = SimpleNamespace(gcs_address="192.0.2.1:1")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)


@pytest.mark.cluster
def test_the_cluster_at_ray_address_is_joined(ray_cluster: Cluster, ray_folder):
    said = connect(RAY_ADDRESS=ray_cluster.address)

    assert said == f"connected: {ray_cluster.address} with 8 CPUs\n"


@pytest.mark.cluster
def test_the_cluster_that_ray_start_left_running_is_joined(ray_cluster: Cluster, ray_folder):
    note_started(ray_folder, ray_cluster.address)

    said = connect()

    assert said == f"connected: {ray_cluster.address} with 8 CPUs\n"


@pytest.mark.slow
@pytest.mark.cluster
def test_without_a_cluster_a_local_one_starts_and_ends_with_the_job(
    ray_folder,
):
    said = connect()

    assert said.endswith(f"with {max(2, os.cpu_count() or 1)} CPUs\n")
    forget_addresses()
    assert said.split()[1] not in services.find_gcs_addresses()


@pytest.mark.cluster
def test_a_cluster_that_another_driver_holds_or_that_has_ended_is_left_alone(
    ray_cluster: Cluster, ray_folder
):
    held = started_cluster()
    note_started(ray_folder, "127.0.0.1:1")
    ended = started_cluster()

    assert (held, ended) == (None, None)


@pytest.mark.cluster
@pytest.mark.slow  # Ray tries for twenty seconds
def test_a_wrong_token_is_one_sentence_with_its_remedy(ray_cluster: Cluster, ray_folder):
    said = connect(RAY_ADDRESS=ray_cluster.address, RAY_AUTH_TOKEN="0" * 64)

    assert said == (
        f"refused: The Ray cluster at {ray_cluster.address} did not take the token of this "
        "machine. Copy the head's ~/.ray/auth_token here; for a cluster without tokens, set "
        "RAY_AUTH_MODE=disabled.\n"
    )


@pytest.mark.cluster
def test_a_token_that_is_not_there_is_one_sentence_too(ray_cluster: Cluster, ray_folder):
    said = connect(RAY_ADDRESS=ray_cluster.address, RAY_AUTH_TOKEN_PATH="/nowhere/token")

    assert said.startswith(f"refused: The Ray cluster at {ray_cluster.address} did not take")


@pytest.mark.cluster
def test_the_cluster_says_what_it_has(ray_cluster: Cluster):
    with connected(ray_cluster):
        total = cluster_total()

    assert total == {"CPU": 8.0, "GPU": 0.0}


def test_paths_are_meant_from_where_the_job_was_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    folder = launch_folder()

    assert folder == str(tmp_path)


def test_a_temporary_copy_is_no_place_for_a_run(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)

    with pytest.raises(InputError, match="needs an absolute --storage, or an address"):
        absolute_address("runs")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("runs", "{here}/runs"),
        ("../data/*.parquet", "{here}/../data/*.parquet"),
        ("/runs", "/runs"),
        ("~/runs", "{home}/runs"),
        ("s3://bucket/runs", "s3://bucket/runs"),
        ("memory://runs", "memory://runs"),
    ],
)
def test_local_paths_become_absolute_and_addresses_stay(tmp_path, monkeypatch, given, meant):
    monkeypatch.chdir(tmp_path)

    address = absolute_address(given)

    assert address == meant.format(here=tmp_path, home=Path.home())


CHOICES: dict[str, tuple[dict[str, float], dict[str, Any], Resources]] = {
    "a laptop": ({"CPU": 2}, {}, Resources((1, 1), False, 1.0, 2, 1)),
    "one worker takes all CPUs but that of the stream": (
        {"CPU": 8},
        {},
        Resources((1, 1), False, 7.0, 8, 1),
    ),
    "workers share what the stream leaves, rounded down": (
        {"CPU": 8},
        {"num_workers": "3"},
        Resources((3, 3), False, 2.3125, 2, 1),
    ),
    "a range is given room for the most": (
        {"CPU": 8},
        {"num_workers": "2:4"},
        Resources((2, 4), False, 1.75, 2, 1),
    ),
    "more workers than CPUs": (
        {"CPU": 2},
        {"num_workers": "3"},
        Resources((3, 3), False, 0.3125, 1, 1),
    ),
    "what the workers do not take is for readers": (
        {"CPU": 8},
        {"num_workers": "3", "cpus_per_worker": 1, "threads_per_worker": 5},
        Resources((3, 3), False, 1, 5, 2),
    ),
    "two readers feed any number of CPUs": (
        {"CPU": 64},
        {"num_workers": "2", "cpus_per_worker": 4},
        Resources((2, 2), False, 4, 32, 2),
    ),
    "one GPU": ({"CPU": 16, "GPU": 1}, {}, Resources((1, 1), True, 8.0, 8, 2)),
    "a worker per GPU, each with its threads": (
        {"CPU": 192, "GPU": 8},
        {},
        Resources((8, 8), True, 8.0, 8, 16),
    ),
    "few CPUs for the GPUs": ({"CPU": 24, "GPU": 8}, {}, Resources((8, 8), True, 2.875, 2, 1)),
    "not all GPUs": (
        {"CPU": 192, "GPU": 8},
        {"num_workers": "2"},
        Resources((2, 2), True, 8.0, 8, 4),
    ),
}


@pytest.mark.parametrize("case", list(CHOICES))
def test_workers_get_what_the_cluster_has(monkeypatch, case):
    have, asked, expected = CHOICES[case]
    has(monkeypatch, have, {})

    chosen = choose_resources(RunConfig(**asked))

    assert chosen == expected


@pytest.mark.parametrize(
    ("num_nodes", "workers", "cpus", "threads"),
    [
        (2, "1", 4.0, 4),  # a whole node; the stream has the other
        (2, "2", 3.0, 4),
        (2, "4", 1.5, 2),
        (4, "4", 1.0, 2),  # one of the four shares its node with the stream
        (4, "3", 2.0, 2),
        (8, "1", 1.0, 1),
    ],
)
def test_no_worker_is_larger_than_a_node(monkeypatch, num_nodes, workers, cpus, threads):
    has(monkeypatch, {"CPU": 8.0}, {}, num_nodes)

    chosen = choose_resources(RunConfig(num_workers=workers))

    assert (chosen.cpus_per_worker, chosen.threads_per_worker) == (cpus, threads)


@pytest.mark.parametrize(
    ("num_nodes", "cpus", "workers", "share"),
    [(4, 12, "1:4", 2.0), (3, 12, "1:6", 1.5), (1, 8, "2:4", 1.75), (2, 16, "1:2", 7.0)],
)
def test_workers_of_a_range_leave_a_cpu_on_whatever_nodes_are_left(
    monkeypatch, num_nodes, cpus, workers, share
):
    has(monkeypatch, {"CPU": float(cpus)}, {}, num_nodes)

    assert choose_resources(RunConfig(num_workers=workers)).cpus_per_worker == share


@pytest.mark.parametrize("fields", [{"cpus_per_worker": 1}, {"cpus_per_worker": 1.5}])
def test_a_range_that_could_starve_the_stream_is_refused(monkeypatch, fields):
    has(monkeypatch, {"CPU": 8.0}, {}, num_nodes=4)

    with pytest.raises(NotEnoughResourcesError, match="when other nodes are lost"):
        choose_resources(RunConfig(num_workers="1:4", **fields))


def test_a_worker_that_no_node_can_hold_is_refused(monkeypatch):
    has(monkeypatch, {"CPU": 8.0}, {}, num_nodes=2)

    with pytest.raises(NotEnoughResourcesError, match="more than the 4 CPUs of the largest node"):
        choose_resources(RunConfig(cpus_per_worker=5))


def test_an_autoscaler_counts_with_its_maximum(monkeypatch):
    has(monkeypatch, {"CPU": 8.0}, {"CPU": 200, "GPU": 8})

    chosen = choose_resources(RunConfig())

    assert (chosen.num_workers, chosen.use_gpu, chosen.cpus_per_worker) == ((8, 8), True, 8.0)


REFUSALS: dict[str, tuple[dict[str, float], dict[str, Any], str]] = {
    "GPUs": (
        {"CPU": 192, "GPU": 8},
        {"num_workers": "9"},
        "--num-workers 9 needs 9 GPUs, and the cluster has 8. Give --num-workers 8, or add nodes.",
    ),
    "least of a range": ({"CPU": 192, "GPU": 8}, {"num_workers": "9:12"}, "needs 9 GPUs"),
    "workers": (
        {"CPU": 8},
        {"num_workers": "57"},
        "57 workers of 0.125 CPUs and Ray Data with 1 need 8.125 CPUs, and the cluster has 8. "
        "Give --num-workers 56 at most.",
    ),
    "workers of a size": (
        {"CPU": 8},
        {"num_workers": "4", "cpus_per_worker": 2},
        "4 workers of 2 CPUs and Ray Data with 1 need 9 CPUs, and the cluster has 8. "
        "Give --num-workers 3 at most, or fewer --cpus-per-worker.",
    ),
    "no CPU for Ray Data": (
        {"CPU": 8},
        {"cpus_per_worker": 8},
        "1 workers of 8 CPUs and Ray Data with 1 need 9 CPUs, and the cluster has 8. "
        "Give the cluster more CPUs, or fewer --cpus-per-worker.",
    ),
    "a single CPU": ({"CPU": 1}, {}, "Give the cluster more CPUs."),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_workers_that_do_not_fit_are_refused_with_the_number_that_does(monkeypatch, case):
    have, asked, sentence = REFUSALS[case]
    has(monkeypatch, have, {})

    with pytest.raises(NotEnoughResourcesError) as refused:
        choose_resources(RunConfig(**asked))

    assert sentence in str(refused.value)


@pytest.mark.parametrize("num_workers", ["3", "9", "30", "56"])
def test_the_number_that_is_said_to_fit_is_accepted(monkeypatch, num_workers):
    has(monkeypatch, {"CPU": 8}, {})

    chosen = choose_resources(RunConfig(num_workers=num_workers))

    assert int(num_workers) * chosen.cpus_per_worker + 1 <= 8


def test_ray_says_one_line_of_a_lost_node(monkeypatch):
    printed: list[Any] = []
    monkeypatch.setattr(
        ray._private.worker, "print_to_stdstream", lambda *said: printed.append(said)
    )

    for _ in range(2):
        shorten_messages()
    said = {"lines": ["The node is dead.\n    [state-dump] much", "", "x" * 300], "is_err": False}
    ray._private.worker.print_to_stdstream(said, ignore_prefix=False)

    [(data, ignore_prefix)] = printed
    assert data == {"lines": ["The node is dead.", "", "x" * 200], "is_err": False}
    assert ignore_prefix is False


def test_ray_data_polls_nothing_behind_our_back() -> None:
    collector = pytest.importorskip("ray.data._internal.usage.collector")

    assert collector.usage_collection_disabled()
