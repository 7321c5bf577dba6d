"""Several runs on one cluster."""

import time
from pathlib import Path

import pytest

from tests.running import (
    TINY,
    Cluster,
    current_step,
    read_run,
    small_corpus,
    start_job,
    wait_for_step,
)

STEPS = 2000


@pytest.mark.slow
@pytest.mark.cluster
def test_two_runs_go_on_beside_each_other_and_a_third_waits_for_one_of_them(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    flags = [*TINY, "--storage", tmp_path, "--data", small_corpus(tmp_path / "data")]
    flags += ["--num-steps", STEPS, "--cpus-per-worker", 3]
    jobs = {}
    for run in ("a", "b"):
        jobs[run] = start_job("pretrain.py", "--run", run, *flags, env=ray_cluster.environment())
        wait_for_step(jobs[run], tmp_path, run, 1)

    third = start_job("pretrain.py", "--run", "c", *flags, env=ray_cluster.environment())
    assert third.stdout is not None
    lines = [third.stdout.readline()]
    while "waiting for room" not in lines[-1]:
        lines.append(third.stdout.readline())
        assert lines[-1], "\n".join(["the third run ended", *lines])
    said = lines[-1]
    began = time.monotonic()
    before = {run: current_step(tmp_path, run) for run in jobs}

    assert "this run takes 4 CPUs, and of the cluster's 8 CPUs these were here before: " in said
    assert f"{tmp_path}/a (4 CPUs)" in said
    assert f"{tmp_path}/b (4 CPUs)" in said
    for run, job in jobs.items():
        wait_for_step(job, tmp_path, run, before[run] + 20)
    assert current_step(tmp_path, "c") == 0
    for job in (*jobs.values(), third):
        output, _ = job.communicate(timeout=300)
        assert job.returncode == 0, output
    assert "there is room now" in output
    results = [read_run(tmp_path, run) for run in ("a", "b", "c")]
    assert results[0] == results[1] == results[2]
    print(f"the third run ended {time.monotonic() - began:.0f} s after it had come")
