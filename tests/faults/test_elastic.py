"""Nodes are lost and join while a run trains: the same data in the same steps, none twice."""

import random
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.cluster import connection
from nanoray.events import read_events
from nanoray.goodput import paid_seconds, read_account
from nanoray.ops.chaos_faults import Target, kill_node
from nanoray.ops.chaos_job import WatchedJob
from nanoray.ops.chaos_trial import Plan, Trial, compare
from nanoray.ops.local_cluster import LocalCluster
from nanoray.storage import RunFolder

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

FLAGS = (
    "--depth 1 --head-dim 32 --vocab-size 512 --max-seq-len 128 --total-batch-tokens 32768 "
    "--device-batch-size 8 --validation-tokens 4096 --num-steps 60 --save-every 5 --eager "
    "--threads-per-worker 1 --dtype float32 --newton-schulz-dtype float32 --num-workers 1:4 "
    "--dollars-per-gpu-hour 3600"
)
WAIT_SECONDS = 300


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Start four nodes with room for one worker each."""
    cluster = LocalCluster(4, 3)
    connection.connect(cluster.address)
    yield cluster
    cluster.stop()


def target_of(cluster: LocalCluster, storage: Path, run: str) -> Target:
    folder = RunFolder(str(storage), run).stage("pretrain")
    arguments = [*shlex.split(FLAGS), "--run", run, "--storage", str(storage)]
    job = WatchedJob(folder, arguments, cluster.address)
    return Target(job, folder, random.Random(0), outage_seconds=1.0, cluster=cluster)


def wait_for_workers(target: Target, count: int, step: int = 0) -> None:
    """Wait until so many workers train, and the run has made a step."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (target.is_training() and len(target.ranks) == count) or (
        target.job.newest_step() < step
    ):
        assert target.job.code is None, target.job.last_lines()
        assert time.monotonic() < deadline, target.job.last_lines()
        time.sleep(0.2)


@pytest.mark.timeout(1800)
def test_four_workers_become_two_three_and_four_again(cluster: LocalCluster, tmp_path: Path):
    calm = target_of(cluster, tmp_path, "calm")
    calm.job.start()
    calm.job.wait()
    assert calm.job.code == 0, calm.job.last_lines()
    resized = target_of(cluster, tmp_path, "resized")
    resized.job.start()

    wait_for_workers(resized, 4, step=8)
    for left in (3, 2):
        kill_node(resized)
        wait_for_workers(resized, left)
    for joined in (3, 4):
        cluster.add_node()
        wait_for_workers(resized, joined)
    resized.job.wait()

    assert resized.job.code == 0, resized.job.last_lines()
    trial = Trial(Plan("resized", 0, ()))
    compare(trial, resized.folder, calm.folder)
    print(f"largest difference of a loss: {trial.largest_difference:.2g}")
    assert trial.same_ledger
    assert trial.largest_difference < 1e-4

    # A worker costs a dollar per second.
    begins = [event for event in read_events(resized.folder) if event["event"] == "begin"]
    sizes = [event["num_workers"] for event in begins]
    assert sizes[0] == sizes[-1] == 4
    assert {2, 3} <= set(sizes)
    assert [event["dollars_per_hour"] for event in begins] == [3600 * size for size in sizes]
    account = read_account(resized.folder)
    assert account.dollars is not None
    assert 2 * account.seconds["productive"] < account.dollars < 4 * paid_seconds(account.seconds)
