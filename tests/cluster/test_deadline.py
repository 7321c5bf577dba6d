"""Runs that may cost so much and no more."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from nanoray.cluster.deadline import Allowance, Deadline
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Beat, Start, start_monitor
from nanoray.train.world import Wish
from tests.driver import connected
from tests.running import TINY, Cluster, current_step, read_run, run_job, small_corpus


@pytest.fixture
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@pytest.mark.cluster
def test_workers_are_asked_to_stop_once_when_the_money_is_spent(
    ray_connection: None, tmp_path: Path
) -> None:
    monitor = start_monitor(str(tmp_path), "1", on_this_node())
    deadline = Deadline(monitor, Allowance(5.0, "the money is spent"))
    beat = Beat(1, 0, 1, 0.0, "node", "step 1", 0.0, is_training=True)
    deadline.check()  # it waits for machines
    ray.get(monitor.end_group.remote())
    ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
    ray.get(monitor.hold.remote(1.0))
    deadline.check()
    assert ray.get(monitor.beat.remote(beat)) is Wish.NONE

    ray.get(monitor.hold.remote(1e9))
    while not deadline.is_over:  # five dollars are some microseconds
        deadline.check()
    deadline.check()

    assert ray.get(monitor.beat.remote(beat)) is Wish.STOP
    assert ray.get(monitor.reason_to_stop.remote()) == "the money is spent"
    ray.get(monitor.ask_to_grow.remote(8))
    assert ray.get(monitor.beat.remote(beat)) is Wish.STOP
    _, lines = ray.get(monitor.take.remote())
    assert [line for line in lines if "money" in line] == [
        "the money is spent: saving, and stopping"
    ]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_whose_money_is_spent_saves_and_goes_on_with_more(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    flags = [*TINY, "--storage", tmp_path, "--data", small_corpus(tmp_path / "data")]
    flags += ["--num-steps", 4000, "--save-every", 10_000, "--dollars-per-gpu-hour", 3600]
    env = ray_cluster.environment()

    code, output = run_job("pretrain.py", "--run", "r", *flags, "--max-cost", 20, env=env)
    assert code == 1, output
    assert "stopped: --max-cost 20 is spent. Step" in output
    stopped = current_step(tmp_path, "r")
    assert 0 < stopped < 4000
    steps = list((tmp_path / "r/pretrain/checkpoints").glob("step_*"))
    assert [step.name for step in steps] == [f"step_{stopped:06d}"]
    events = [
        json.loads(line) for line in (tmp_path / "r/pretrain/events.jsonl").read_text().splitlines()
    ]
    assert events[-1]["why"] == "interrupted"
    [begin] = [event for event in events if event["event"] == "begin"]
    assert (begin["num_workers"], begin["dollars_per_hour"]) == (1, 3600)

    code, output = run_job("pretrain.py", "--run", "r", *flags, "--max-cost", 20, env=env)
    assert code == 2
    assert "--max-cost 20 is spent" in output

    code, output = run_job("pretrain.py", "--run", "r", *flags, "--max-cost", 10_000, env=env)
    assert code == 0, output
    code, output = run_job("pretrain.py", "--run", "calm", *flags, env=env)
    assert code == 0, output
    assert read_run(tmp_path, "r")["weights"] == read_run(tmp_path, "calm")["weights"]
