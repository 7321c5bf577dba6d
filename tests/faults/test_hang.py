"""A rank that is stopped is found and healed in time, and the run equals a calm one."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from nanoray.events import read_events
from nanoray.metrics import read_metrics
from nanoray.storage import RunFolder, StageFolder
from tests.faults.test_kill import arguments, calm
from tests.running import Cluster, read_run, start_job, wait_for_step

HANG_SECONDS, HEALED_SECONDS = 30, 60
"""The setting, and the time to the next step that is promised for it."""


@pytest.mark.cluster
@pytest.mark.slow
def test_a_stopped_rank_is_found_and_healed_within_a_minute_and_the_run_equals_the_undisturbed_one(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    expected = calm(ray_cluster, 2, steps=60)

    hangs = [*arguments(tmp_path, "hung", 2, steps=60), "--hang-seconds", HANG_SECONDS]
    process = start_job("pretrain.py", *hangs, env=env)
    wait_for_step(process, tmp_path, "hung", 12)
    stopped = time.time()
    os.kill(ray_cluster.workers()[-1].pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=300)

    assert process.returncode == 0, output
    assert re.search(r"rank \d is stopped, silent for \d+ s since: step \d+", output)
    assert re.search(r"hang on rank \d \(.*\): 1 of 10; the group starts again from", output)
    assert "train_step" in output, "the stack of the loop"
    assert read_run(tmp_path, "hung") == expected
    assert next_step(RunFolder(str(tmp_path), "hung").stage("pretrain")) - stopped < HEALED_SECONDS


def next_step(folder: StageFolder) -> float:
    """Give the time of the first step of the group that came after."""
    begun = [event["time"] for event in read_events(folder) if event["event"] == "begin"]
    assert len(begun) == 2
    steps = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    return min(float(step["time"]) for step in steps if step["time"] > begun[-1])
