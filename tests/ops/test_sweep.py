"""Sweeps, from the command line to the table."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from nanoray.ops.trial_table import Status, TrialRow, read_trials
from nanoray.text.tokenizer_file import save_tokenizer
from tests.driver import connected
from tests.running import (
    Cluster,
    current_step,
    kill_job,
    read_run,
    run_job,
    small_corpus,
    start_job,
)
from tests.support import tiny_tokenizer

SHAPE = (
    *("--head-dim", 32, "--vocab-size", 400, "--max-seq-len", 64, "--eager"),
    *("--total-batch-tokens", 1024, "--device-batch-size", 4, "--validation-tokens", 640),
    *("--threads-per-worker", 1, "--cpus-per-worker", 1),
)


def command(storage: Path, run: str, *more: object) -> list[object]:
    """Give the flags of a sweep."""
    data = storage.parent / "data" if storage.name == "runs" else storage / "data"
    if not data.exists():
        small_corpus(data)
    return ["--run", run, "--storage", storage, "--data", data, *SHAPE, *more]


def results(rows: list[TrialRow]) -> dict[str, float | None]:
    """Give what must be equal between two sweeps of the same trials."""
    return {row.name: row.bits_per_byte for row in rows}


@pytest.mark.slow
@pytest.mark.cluster
def test_a_sweep_trains_its_trials_and_does_none_of_them_twice(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    axes = ("--depths", 1, "--ratios", "0.1,0.2", "--branch")
    code, output = run_job("sweep.py", *command(tmp_path, "s", *axes), env=env, timeout=400)
    assert code == 0, output
    rows = read_trials(str(tmp_path / "s"))
    assert [row.status for row in rows] == [Status.DONE] * 2
    assert "how loss falls with size cannot be fitted" in output
    short, long = rows
    assert 0 < short.steps_taken_over < short.num_steps
    assert long.steps_taken_over == 0

    # The same trial by itself, from its first step.
    alone = (
        *("--depth", 1, "--tokens-per-param", 0.1),
        "--tokenizer",
        tmp_path / "s/tokenizer.json",
    )
    code, output = run_job("pretrain.py", *command(tmp_path, "alone", *alone), env=env)
    assert code == 0, output
    one, other = read_run(tmp_path, "alone"), read_run(tmp_path / "s", short.name)
    assert one["weights"] == other["weights"]
    assert one["losses"] == other["losses"]
    assert one["ledger"] == other["ledger"]

    began = time.time()
    wider = ("--depths", 1, "--ratios", "0.1,0.2", "--max-flops", 1)
    code, output = run_job("sweep.py", *command(tmp_path, "s", *wider), env=env)
    assert code == 0, output
    assert results(read_trials(str(tmp_path / "s"))) == results(rows)
    for row in rows:
        written = (tmp_path / "s" / row.name / "pretrain/metrics.jsonl").stat().st_mtime
        assert written < began

    with connected(ray_cluster):
        groups: dict[str, dict[str, Any]] = ray.util.placement_group_table()
    assert {group["state"] for group in groups.values()} <= {"REMOVED"}


@pytest.mark.slow
@pytest.mark.cluster
def test_a_trial_that_cannot_train_is_named_and_costs_the_others_nothing(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    axes = ("--depths", 1, "--ratios", "0.05,0.1")
    flags = command(tmp_path, "s", *axes, "--max-flops", 5e9)
    code, output = run_job("sweep.py", *flags, env=env, timeout=400)
    assert code == 0, output
    cheap, dear = read_trials(str(tmp_path / "s"))
    assert (cheap.status, dear.status) == (Status.DONE, Status.STOPPED)
    assert f"{dear.name}: stopped. --max-flops 5e+09 is spent" in output

    save_tokenizer(tiny_tokenizer(), str(tmp_path / "s" / dear.name / "tokenizer.json"))
    code, output = run_job("sweep.py", *command(tmp_path, "s", *axes), env=env, timeout=400)
    assert code == 0, output
    cheap, dear = read_trials(str(tmp_path / "s"))
    assert (cheap.status, dear.status) == (Status.DONE, Status.FAILED)
    assert "is not the one that run" in dear.reason
    assert f"{dear.name}: failed" in output


@pytest.mark.slow
@pytest.mark.cluster
def test_two_trials_at_a_time_both_get_on(tmp_path: Path) -> None:
    """Without a cluster, as on a laptop: their streams once shared a CPU, and neither began."""
    axes = ("--depths", 1, "--ratios", "0.1,0.2", "--trials-at-once", 2)
    flags = command(tmp_path, "s", *axes)
    at = flags.index("--cpus-per-worker")
    del flags[at : at + 2]

    code, output = run_job("sweep.py", *flags, env={"RAY_ADDRESS": ""}, timeout=400)

    assert code == 0, output
    rows = read_trials(str(tmp_path / "s"))
    assert [row.status for row in rows] == [Status.DONE] * 2
    began, ended = (
        [
            next(e["time"] for e in events if e["event"] == name)
            for events in (
                [json.loads(line) for line in path.read_text().splitlines()]
                for path in sorted((tmp_path / "s").glob("d*/pretrain/events.jsonl"))
            )
        ]
        for name in ("begin", "stop")
    )
    assert max(began) < min(ended)


@pytest.mark.cluster
def test_more_than_the_cluster_holds_is_said_at_once(ray_cluster: Cluster, tmp_path: Path) -> None:
    axes = ("--depths", 1, "--ratios", "0.05", "--trials-at-once", 9)
    code, output = run_job(
        "sweep.py", *command(tmp_path, "s", *axes), env=ray_cluster.environment()
    )

    assert code == 2, output
    assert "9 trial(s) at once with 1 worker(s) each" in output


@pytest.mark.slow
@pytest.mark.cluster
def test_another_setting_for_all_trials_is_another_sweep(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    axes = ("--depths", 1, "--ratios", "0.05", "--max-flops", 1)
    code, output = run_job("sweep.py", *command(tmp_path, "s", *axes), env=env)
    assert code == 0, output

    other = command(tmp_path, "s", *axes, "--matrix-lr", 0.03)
    code, output = run_job("sweep.py", *other, env=env)

    assert code == 2
    assert "Sweep s began with other settings: --matrix-lr was 0.02 and is 0.03" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--ratios", "5"), "A sweep needs --depths"),
        (("--depths", "4,x", "--ratios", "5"), "--depths 4,x"),
        (("--depths", "4", "--ratios", "5", "--depth", "4"), "--depth cannot be given to a sweep"),
        (("--compare", "a", "b"), "holds no trials.parquet"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, flags: tuple[str, ...], told: str) -> None:
    code, output = run_job("sweep.py", "--storage", tmp_path, *flags)

    assert code == 2, output
    assert told in output
    assert "Traceback" not in output


def wait_for_any_step(process: Any, storage: Path, at_least: int) -> None:
    """Wait until so many steps were made by all trials together."""
    deadline = time.monotonic() + 300
    while sum(current_step(storage, path.name) for path in storage.glob("d*")) < at_least:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_a_sweep_that_is_killed_twice_ends_with_the_same_table(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    axes = ("--depths", "1,2", "--ratios", "0.2,0.4,0.8", "--branch", "--save-every", 10)
    calm, killed = tmp_path / "calm/runs", tmp_path / "killed/runs"
    code, output = run_job("sweep.py", *command(calm, "s", *axes), env=env, timeout=1500)
    assert code == 0, output

    for at_least in (60, 150):
        job = start_job("sweep.py", *command(killed, "s", *axes), env=env)
        wait_for_any_step(job, killed / "s", at_least)
        kill_job(job)
    job = start_job("sweep.py", *command(killed, "s", *axes), env=env)
    wait_for_any_step(job, killed / "s", 200)
    os.killpg(job.pid, signal.SIGINT)
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 130, output
    code, output = run_job("sweep.py", *command(killed, "s", *axes), env=env, timeout=1500)
    assert code == 0, output

    one, other = read_trials(str(calm / "s")), read_trials(str(killed / "s"))
    assert [row.status for row in other] == [Status.DONE] * 6
    assert results(one) == results(other)
    for row in one:
        assert read_run(calm / "s", row.name) == read_run(killed / "s", row.name)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_budget_of_hours_saves_and_stops_and_the_sweep_goes_on_with_more(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    axes = ("--depths", "2", "--ratios", "2,4")
    flags = command(tmp_path, "s", *axes, "--max-worker-hours", 0.01)
    code, output = run_job("sweep.py", *flags, env=env, timeout=600)
    assert code == 0, output
    rows = read_trials(str(tmp_path / "s"))
    stopped = [row for row in rows if row.status is Status.STOPPED]
    assert len(stopped) == 2
    assert "--max-worker-hours 0.01 is spent" in output
    begun = [r.name for r in rows if (tmp_path / "s" / r.name / "pretrain/checkpoints").exists()]
    assert len(begun) == 1
    steps = current_step(tmp_path / "s", begun[0])
    last = sorted((tmp_path / "s" / begun[0] / "pretrain/checkpoints").glob("step_*"))[-1]
    assert json.loads((last / "state.json").read_text())["step"] == steps
