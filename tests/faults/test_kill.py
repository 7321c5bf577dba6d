"""A killed run, started again by the same command, equals the run that nobody disturbed."""

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.running import (
    TINY,
    TINY_SHAPE,
    Cluster,
    kill_a_worker,
    kill_job,
    read_run,
    run_job,
    small_corpus,
    start_job,
    wait_for_step,
)

STEPS = 200


def arguments(storage: Path, run: str, num_workers: int, steps: int = STEPS) -> list[object]:
    data = small_corpus(storage / "data")
    identity = ["--data", data, "--num-steps", steps, "--save-every", 20, "--validate-every", 50]
    return ["--run", run, "--storage", storage, "--num-workers", num_workers, *identity, *TINY]


@cache
def calm(cluster: Cluster, num_workers: int, steps: int) -> dict[str, Any]:
    """Give the run that nobody disturbs; it is the same for all tests."""
    with tempfile.TemporaryDirectory(prefix="nanoray-calm-") as folder:
        command = arguments(Path(folder), "calm", num_workers, steps)
        code, output = run_job("pretrain.py", *command, env=cluster.environment())
        assert code == 0, output
        return read_run(Path(folder), "calm")


@pytest.mark.proof
@pytest.mark.cluster
@pytest.mark.parametrize(("num_workers", "seed"), [(2, 1)])
def test_a_run_killed_twice_equals_the_undisturbed_one(
    ray_cluster: Cluster, tmp_path: Path, num_workers: int, seed: int
):
    check_that_kills_change_nothing(ray_cluster, tmp_path, num_workers, seed, steps=80)


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 16))
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_kills_at_many_moments_change_nothing(
    ray_cluster: Cluster, tmp_path: Path, num_workers: int, seed: int
):
    check_that_kills_change_nothing(ray_cluster, tmp_path, num_workers, seed)


def check_that_kills_change_nothing(
    cluster: Cluster, tmp_path: Path, num_workers: int, seed: int, steps: int = STEPS
) -> None:
    """Kill a worker, then the whole job, each at a random step, and run the command to its end."""
    rng = random.Random(seed)
    env = cluster.environment()
    expected = calm(cluster, num_workers, steps)
    disturbed = arguments(tmp_path, "killed", num_workers, steps)
    first_kill = rng.randrange(5, steps // 2)
    process = start_job("pretrain.py", *disturbed, env=env)
    wait_for_step(process, tmp_path, "killed", first_kill)
    kill_a_worker(cluster, rng)
    wait_for_step(process, tmp_path, "killed", rng.randrange(first_kill + 1, steps - 20))
    kill_job(process)
    code, output = run_job("pretrain.py", *disturbed, env=env)

    assert code == 0, output
    assert "from the checkpoint of step" in output
    assert read_run(tmp_path, "killed") == expected


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("numbers", [(1, 2), (1, 2, 3, 4)], ids=str)
def test_any_number_of_workers_reads_the_same_rows_in_the_same_steps(
    ray_cluster: Cluster, numbers: tuple[int, ...]
):
    runs = {n: calm(ray_cluster, n, steps=30) for n in numbers}

    assert len({runs[n]["ledger"] for n in runs}) == 1
    # The same numbers are added up in another order: fp32 would differ in the last digits, and
    # bf16 activations of other microbatch shapes differ by their rounding, 2^-9.
    for n in numbers[1:]:
        losses = zip(runs[n]["losses"], runs[1]["losses"], strict=True)
        assert all(abs(a[1] - b[1]) < 0.02 for a, b in losses)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_compiled_run_on_several_threads_is_exact_too(ray_cluster: Cluster, tmp_path: Path):
    env = ray_cluster.environment()
    data = small_corpus(tmp_path / "data")
    flags = ["--storage", tmp_path, "--data", data, "--num-steps", 60, "--save-every", 15]
    flags += ["--threads-per-worker", 2, *TINY_SHAPE]
    code, output = run_job("pretrain.py", "--run", "calm", *flags, env=env)
    assert code == 0, output

    process = start_job("pretrain.py", "--run", "killed", *flags, env=env)
    wait_for_step(process, tmp_path, "killed", 40)
    kill_job(process)
    code, output = run_job("pretrain.py", "--run", "killed", *flags, env=env)

    assert code == 0, output
    assert "from the checkpoint of step 30" in output
    assert read_run(tmp_path, "killed") == read_run(tmp_path, "calm")


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers(ray_cluster: Cluster, tmp_path: Path):
    env = ray_cluster.environment()
    expected = calm(ray_cluster, 1, steps=60)

    for num_workers, until in ((4, 25), (3, 45)):
        process = start_job(
            "pretrain.py", *arguments(tmp_path, "resized", num_workers, 60), env=env
        )
        wait_for_step(process, tmp_path, "resized", until)
        kill_job(process)
    code, output = run_job("pretrain.py", *arguments(tmp_path, "resized", 2, steps=60), env=env)

    assert code == 0, output
    assert read_run(tmp_path, "resized")["ledger"] == expected["ledger"]
