"""Rollouts by actors: the same by any number of them, whoever dies, and whatever is published."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray
import torch
from torch import Tensor

from nanoray.config import InputError, RunFailedError
from nanoray.inference.engine import EngineConfig
from nanoray.rl.rollout import RolloutConfig
from nanoray.rl.rollout_workers import (
    RolloutCrew,
    RolloutWorkers,
    pack,
    plain_error,
    unpack,
)
from nanoray.rl.source import LocalRollouts, RolloutSource
from nanoray.rl.trajectory import Trajectory
from nanoray.task import Grade, Task
from tests.driver import connected
from tests.rl.toy_task import BrokenTask, ToyTask
from tests.running import Cluster, process_title
from tests.support import tiny_config, tiny_gpt, tiny_tokenizer

QUESTIONS = [3, 0, 4, 7, 1, 6, 2]


class SlowTask(ToyTask):
    """Each answer takes a while to grade."""

    def grade(self, index: int, answer: str) -> Grade:
        time.sleep(0.05)
        return super().grade(index, answer)


class DeadlyTask(ToyTask):
    """Who grades an answer dies of it."""

    def grade(self, index: int, answer: str) -> Grade:
        os.kill(os.getpid(), signal.SIGKILL)
        return Grade(False)


@pytest.fixture(scope="module")
def driver(ray_cluster: Cluster) -> Iterator[Cluster]:
    with connected(ray_cluster, PYTHONPATH=str(Path(__file__).parents[2])):
        yield ray_cluster


def weights_of(seed: int) -> dict[str, Tensor]:
    model = tiny_gpt(vocab_size=tiny_tokenizer().vocab_size)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(model.unembedding.weight.shape, generator=generator)
    return {**model.state_dict(), "unembedding.weight": noise * 0.1}


def make_source(task: Task) -> RolloutSource:
    return RolloutSource(
        model=tiny_config(vocab_size=tiny_tokenizer().vocab_size),
        compute_dtype="float32",
        tokenizer=tiny_tokenizer().to_json(),
        task=task,
        rollout=RolloutConfig(num_samples=3, max_new_tokens=8),
        engine=EngineConfig(max_sequences=8, step_tokens=64),
    )


def make_workers(task: Task, num_workers: int, **fields) -> RolloutWorkers:
    crew = RolloutCrew(num_workers=num_workers, **{"cpus_each": 0, **fields})
    return RolloutWorkers(make_source(task), crew)


@pytest.fixture(scope="module")
def two_workers(driver: Cluster) -> Iterator[RolloutWorkers]:
    with make_workers(SlowTask(), 2) as workers:
        yield workers


def processes(cluster: Cluster) -> list[psutil.Process]:
    """Find the processes of the actors that are ready."""
    everyone = psutil.Process(cluster.holder.pid).children(recursive=True)
    return [p for p in everyone if process_title(p).startswith("ray::RolloutWorker")]


def expected(
    seed: int, *, step: int, version: int, questions: Sequence[int] = QUESTIONS
) -> list[list[Trajectory]]:
    """Draw here, without Ray, in parts of the size that workers get."""
    rollouts = LocalRollouts(make_source(ToyTask()), torch.device("cpu"))
    rollouts.publish(weights_of(seed), version)
    return [
        group
        for first in range(0, len(questions), 2)
        for group in rollouts.start(questions[first : first + 2], step=step, version=version)
    ]


@pytest.mark.cluster
def test_trajectories_do_not_depend_on_the_number_of_workers(two_workers: RolloutWorkers) -> None:
    two_workers.publish(weights_of(1), 4)
    by_two = two_workers.collect(QUESTIONS, step=2, version=4)
    with make_workers(ToyTask(), 1) as one_worker:
        one_worker.publish(weights_of(1), 4)
        by_one = one_worker.collect(QUESTIONS, step=2, version=4)
        assert one_worker.collect([], step=2, version=4) == []

    assert [[t.question for t in group] for group in by_one] == [[q] * 3 for q in QUESTIONS]
    assert by_one == by_two == expected(1, step=2, version=4)


@pytest.mark.cluster
def test_a_batch_keeps_the_weights_it_was_started_with(two_workers: RolloutWorkers) -> None:
    two_workers.publish(weights_of(1), 4)
    early = two_workers.start(QUESTIONS, step=2, version=4)
    two_workers.publish(weights_of(2), 5)
    late = two_workers.start(QUESTIONS, step=2, version=5)
    with pytest.raises(ValueError, match="Version 4 was asked for, and version 5"):
        two_workers.start(QUESTIONS, step=2, version=4)

    of_late, of_early = two_workers.finish(late), two_workers.finish(early)

    assert of_early == expected(1, step=2, version=4)
    assert of_late == expected(2, step=2, version=5)
    assert {t.policy_version for group in of_late for t in group} == {5}
    assert [t.tokens for t in of_late[0]] != [t.tokens for t in of_early[0]]


@pytest.mark.cluster
def test_a_killed_worker_costs_nothing_but_time(
    driver: Cluster, two_workers: RolloutWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    two_workers.publish(weights_of(1), 4)
    two_workers.collect(QUESTIONS, step=1, version=4)
    while len(processes(driver)) != 2:
        time.sleep(0.02)  # until both are ready, and those of other tests have ended

    many = QUESTIONS * 3
    pending = two_workers.start(many, step=2, version=4)
    while not any(part.answers.done() for part in pending.parts):
        time.sleep(0.005)
    assert not all(part.answers.done() for part in pending.parts)
    processes(driver)[0].send_signal(signal.SIGKILL)
    found = two_workers.finish(pending)
    two_workers.publish(weights_of(2), 5)
    after = two_workers.collect(QUESTIONS, step=3, version=5)
    while len(processes(driver)) != 2:
        time.sleep(0.02)

    assert "a rollout worker has died and is started again (1 of 10 in a row)" in caplog.text
    assert found == expected(1, step=2, version=4, questions=many)
    assert after == expected(2, step=3, version=5)


@pytest.mark.cluster
def test_workers_that_always_die_end_the_run(driver: Cluster) -> None:
    with make_workers(DeadlyTask(), 1, max_restarts=1) as workers:
        workers.publish(weights_of(1), 4)
        pending = workers.start(QUESTIONS, step=2, version=4)

        with pytest.raises(RunFailedError, match="has died 2 times in a row"):
            workers.finish(pending)
        with pytest.raises(RunFailedError, match="has died 2 times in a row"):
            workers.start(QUESTIONS, step=3, version=4)


@pytest.mark.cluster
def test_wrong_input_that_a_worker_finds_is_raised_as_such(driver: Cluster) -> None:
    with make_workers(BrokenTask(), 1) as workers:
        with pytest.raises(ValueError, match="and nothing was published"):
            workers.start(QUESTIONS, step=2, version=0)
        workers.publish(weights_of(1), 0)
        with pytest.raises(InputError, match="This task has no right answers"):
            workers.collect(QUESTIONS, step=2, version=0)


@pytest.mark.cluster
def test_a_worker_without_room_takes_nothing_from_the_others(driver: Cluster) -> None:
    """The cluster has 8 CPUs: the second actor never comes to life."""
    with make_workers(ToyTask(), 2, cpus_each=5) as workers:
        workers.publish(weights_of(1), 4)
        found = workers.collect(QUESTIONS, step=2, version=4)

    assert found == expected(1, step=2, version=4)


@pytest.mark.cluster
def test_closing_ends_actors_threads_and_whoever_waits(driver: Cluster) -> None:
    before = processes(driver)
    workers = make_workers(SlowTask(), 1)
    workers.publish(weights_of(1), 4)
    pending = workers.start(QUESTIONS, step=2, version=4)

    workers.close()

    with pytest.raises(RunFailedError, match="were closed"):
        workers.finish(pending)
    assert not any(thread.is_alive() for thread in workers._threads)
    deadline = time.monotonic() + 20
    while set(processes(driver)) - set(before):
        assert time.monotonic() < deadline, "actors are left"
        time.sleep(0.05)


def test_errors_of_the_code_are_told_from_those_of_the_input() -> None:
    wrong, failed = InputError("a"), RunFailedError("b")

    for cause in (wrong, failed):
        assert plain_error(ray.exceptions.RayTaskError("f", "traceback", cause)) is cause
    other = plain_error(ray.exceptions.RayTaskError("f", "traceback", KeyError("c")))
    assert isinstance(other, RunFailedError)
    assert str(other) == "A rollout worker failed: KeyError: 'c'"


def test_packed_weights_are_those_that_an_engine_would_round_to() -> None:
    weights = {"a": torch.randn(3, 5).T, "b": torch.randn(2, 2).bfloat16()}

    for dtype in (torch.float32, torch.bfloat16):
        again = unpack(pack(weights, dtype), dtype)
        assert all(torch.equal(again[name], weights[name].to(dtype)) for name in weights)


@pytest.mark.parametrize(
    "fields", [{"num_workers": 0}, {"cpus_each": -1}, {"threads": 0}, {"questions_each": 0}]
)
def test_a_crew_of_nobody_is_refused(fields) -> None:
    with pytest.raises(InputError, match="must be at least"):
        RolloutCrew(**{"num_workers": 1, **fields})
