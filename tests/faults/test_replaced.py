"""A run that is started while it runs: the newer start has it, and nobody takes it back."""

import json
import time
from pathlib import Path

import pytest

from tests.faults.test_kill import arguments, calm
from tests.running import LONGEST_WAIT_SECONDS, Cluster, read_run, start_job, wait_for_step

STEPS = 200


@pytest.mark.cluster
@pytest.mark.slow
def test_of_two_drivers_of_a_run_the_newer_one_trains_it_to_its_undisturbed_end(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    expected = calm(ray_cluster, 1, STEPS)
    command = arguments(tmp_path, "twice", 1, STEPS)

    older = start_job("pretrain.py", *command, env=env)
    wait_for_step(older, tmp_path, "twice", 25)
    [worker] = ray_cluster.workers()
    worker.suspend()  # or it might have done all steps before the newer one begins
    newer = start_job("pretrain.py", *command, env=env)
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while json.loads((tmp_path / "twice/run.json").read_text())["attempt"] == 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.resume()
    told, _ = older.communicate(timeout=300)
    said, _ = newer.communicate(timeout=300)

    assert (older.returncode, newer.returncode) == (2, 0), told + said
    assert "replaced by another start on rank 0 (RunReplacedError: " in told
    last = told.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}/twice: attempt 2 has replaced attempt 1, which ")
    assert f"It belongs to process {newer.pid} on " in last
    assert "attempt 2 starts from the checkpoint of step" in said
    assert "attempt 3" not in told + said
    assert read_run(tmp_path, "twice") == expected
