import os
import random
import subprocess
import sys

import pytest

from nanoray.config import InputError
from nanoray.ops.chaos_faults import (
    FAULTS,
    Target,
    break_storage,
    damage_checkpoint,
    fill_disk,
)
from nanoray.ops.chaos_job import WatchedJob
from nanoray.storage import RunFolder


def target_of(storage: object) -> Target:
    folder = RunFolder(str(storage), "r").stage("pretrain")
    job = WatchedJob(folder, [], "127.0.0.1:1")
    return Target(job, folder, random.Random(0), outage_seconds=1.0, cluster=None)


def test_storage_is_away_until_it_is_mended(tmp_path):
    step = tmp_path / "r" / "pretrain" / "checkpoints" / "step_000020"
    step.mkdir(parents=True)

    done = break_storage(target_of(tmp_path))
    with pytest.raises(NotADirectoryError):
        step.mkdir()
    done.mend()

    assert step.is_dir()
    assert not done.stops_training


def test_the_disk_of_this_machine_is_not_filled(tmp_path):
    (tmp_path / "r").mkdir()

    with pytest.raises(InputError, match="would fill the disk of this machine"):
        fill_disk(target_of(tmp_path))


def test_a_disk_of_its_own_is_filled_and_freed(small_disk):
    (small_disk / "r").mkdir()

    done = fill_disk(target_of(small_disk))
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_bytes(bytes(4096))
    done.mend()

    (small_disk / "more").write_bytes(bytes(4096))


NOTICE = """
import random
import time
import ray
import nanoray.cluster.connection as connection
from nanoray.ops import chaos_faults
from nanoray.ops.local_cluster import LocalCluster

cluster = LocalCluster(2, 1)
connection.connect(cluster.address)
there = lambda: {n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
first = there()
chaos_faults.Target.pick_node = lambda target: sorted(first)[0]
target = chaos_faults.Target(None, None, random.Random(0), 60.0, cluster)
harm = chaos_faults.preempt_node(target)
print(harm.mend_after, there() == first)
harm.mend()
deadline = time.monotonic() + 40
while (len(there() & first), len(there() - first)) != (1, 1):
    assert time.monotonic() < deadline, there()
    time.sleep(0.2)
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_was_given_notice_is_taken_away_and_another_one_comes():
    done = subprocess.run(
        [sys.executable, "-c", NOTICE], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60.0 True\n")


@pytest.mark.parametrize("fault", [fill_disk, break_storage, damage_checkpoint])
def test_what_is_done_to_files_needs_files(fault):
    with pytest.raises(InputError, match="needs a local folder as --storage"):
        fault(target_of("memory://chaos"))


def test_no_checkpoint_is_damaged_before_there_is_one(tmp_path):
    with pytest.raises(InputError, match=r"needs a checkpoint, and .*pretrain has none yet"):
        damage_checkpoint(target_of(tmp_path))


def test_each_fault_says_what_it_does():
    assert all(fault.__doc__ for fault in FAULTS.values())
    assert os.sep not in "".join(FAULTS)
