"""The RL stage as a user runs it: it resumes, whoever is killed, and says what came out."""

import random
import time
from pathlib import Path

import psutil
import pytest

from tests.running import (
    ROOT,
    Cluster,
    kill_a_worker,
    kill_job,
    process_title,
    read_run,
    run_job,
    start_job,
    wait_for_step,
)
from tests.stages.chats import save_base

JOB = "../tests/stages/rl_job.py"
FLAGS: tuple[object, ...] = (
    *("--num-workers", 2),
    *("--examples-per-step", 4),
    *("--num-samples", 4),
    *("--max-new-tokens", 12),
    *("--device-batch-size", 8),
    *("--validation-questions", 6),
    *("--validation-samples", 4),
    *("--validate-every", 10),
    *("--save-every", 5),
    *("--num-steps", 30),
    *("--cpus-per-worker", 1),
    *("--threads-per-worker", 1),
    "--eager",
)


def flags(storage: Path, run: str, *more: object) -> list[object]:
    return ["--run", run, "--storage", storage, *FLAGS, *more]


def pass_rates(storage: Path, run: str) -> str:
    return (storage / run / "rl/before.json").read_text()


def rollout_actors(cluster: Cluster) -> list[psutil.Process]:
    everyone = psutil.Process(cluster.holder.pid).children(recursive=True)
    return [p for p in everyone if process_title(p).startswith("ray::RolloutWorker")]


@pytest.mark.proof
@pytest.mark.cluster
def test_rl_goes_on_after_a_rollout_actor_a_trainer_and_the_job_were_killed(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = {**ray_cluster.environment(), "PYTHONPATH": str(ROOT)}
    for run in ("calm", "killed"):
        save_base(tmp_path, run)
    code, output = run_job(JOB, *flags(tmp_path, "calm"), env=env)
    assert code == 0, output

    # Drawn by actors instead of the trainers: the answers are the same.
    disturbed = flags(tmp_path, "killed", "--rollout-workers", 2)
    process = start_job(JOB, *disturbed, env=env)
    wait_for_step(process, tmp_path, "killed", 3, stage="rl")
    random.Random(0).choice(rollout_actors(ray_cluster)).kill()
    wait_for_step(process, tmp_path, "killed", 8, stage="rl")
    kill_a_worker(ray_cluster, random.Random(1))
    wait_for_step(process, tmp_path, "killed", 16, stage="rl")
    kill_job(process)
    code, output = run_job(JOB, *disturbed, env=env)

    assert code == 0, output
    assert "from the checkpoint of step" in output
    calm, killed = read_run(tmp_path, "calm", "rl"), read_run(tmp_path, "killed", "rl")
    assert killed["ledger"] == calm["ledger"]
    assert killed["weights"] == calm["weights"]
    assert pass_rates(tmp_path, "killed") == pass_rates(tmp_path, "calm")
    assert "pass@1" in output
    deadline = time.monotonic() + 30
    while rollout_actors(ray_cluster):
        assert time.monotonic() < deadline, "rollout actors were left behind"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.cluster
def test_bad_input_of_rl_is_told_in_one_sentence(ray_cluster: Cluster, tmp_path: Path) -> None:
    env = ray_cluster.environment()
    save_base(tmp_path, "r")

    cases = [
        (("--run", "none"), "has no finished stage before rl"),
        (("--run", "r", "--tasks", "mmlu"), "--tasks has 'mmlu', and no such task gives rewards"),
        (
            ("--run", "r", "--tasks", "arithmetic", "--num-workers", 3, "--rollout-workers", 2),
            "--rollout-workers 2 cannot be shared out among 3 trainers. Give a multiple of 3",
        ),
    ]
    for given, said in cases:
        code, output = run_job("rl.py", *given, "--storage", tmp_path, "--eager", env=env)
        assert code == 2, output
        assert said in output
