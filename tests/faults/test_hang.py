"""A rank that is stopped is found, its stack is written down, and the run equals a calm one."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.faults.test_kill import arguments, calm
from tests.running import Cluster, read_run, start_job, wait_for_step


@pytest.mark.cluster
@pytest.mark.slow
def test_a_stopped_rank_is_found_and_the_run_equals_the_undisturbed_one(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    expected = calm(ray_cluster, 2, steps=60)

    hangs = [*arguments(tmp_path, "hung", 2, steps=60), "--hang-seconds", 8]
    process = start_job("pretrain.py", *hangs, env=env)
    wait_for_step(process, tmp_path, "hung", 12)
    os.kill(ray_cluster.workers()[-1].pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=180)

    assert process.returncode == 0, output
    assert re.search(r"rank \d is stopped, silent for \d+ s since: step \d+", output)
    assert re.search(r"hang on rank \d \(.*\): 1 of 10; the group starts again from", output)
    assert "train_step" in output, "the stack of the loop"
    assert read_run(tmp_path, "hung") == expected
