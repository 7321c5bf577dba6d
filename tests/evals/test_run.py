"""Exams by actors on a cluster: the same grades by any crew, also where actors die."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from evals.exam import Candidate
from evals.run import (
    CheckpointSource,
    Crew,
    DisplacedError,
    Marks,
    choose_crew,
    parts_of,
    take_exams,
)
from nanoray.config import InputError
from nanoray.storage import RunFolder
from nanoray.task import Grade
from tests.driver import connected
from tests.evals.small_bundle import items
from tests.evals.test_core import exam
from tests.running import Cluster, process_title
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer

pytestmark = pytest.mark.cluster


class SlowExam:
    """Questions whose answers need some time and no model."""

    name = "slow"
    group = "core"
    baseline = 0.0
    sandbox: str | None = None
    fingerprint = "slow"

    def __len__(self) -> int:
        return 200

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        time.sleep(1)
        return [Grade(index % 3 == 0) for index in indices]


class BrokenExam(SlowExam):
    """Questions that cannot be asked."""

    name = "broken"

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        raise InputError("These questions are no questions.")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> CheckpointSource:
    storage = tmp_path_factory.mktemp("runs")
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(vocab_size=tokenizer.vocab_size)
    save_model(RunFolder(str(storage), "r").stage("pretrain"), model, tokenizer)
    return CheckpointSource(str(storage), "r/pretrain@10", "float32")


@pytest.fixture
def driver(ray_cluster: Cluster) -> Iterator[Cluster]:
    with connected(ray_cluster, PYTHONPATH=str(Path(__file__).parents[2])):
        wait_for_their_end(ray_cluster)
        yield ray_cluster


def crew(num_actors: int) -> Crew:
    return Crew(num_actors, gpus_each=0, cpus_each=0.5, threads=1)


def examiners(cluster: Cluster) -> list[psutil.Process]:
    """Find the processes of the actors."""
    everyone = psutil.Process(cluster.holder.pid).children(recursive=True)
    return [p for p in everyone if process_title(p).startswith("ray::Examiner")]


def wait_for_their_end(cluster: Cluster) -> None:
    deadline = time.monotonic() + 20
    while examiners(cluster):
        assert time.monotonic() < deadline, "actors are left"
        time.sleep(0.1)


def test_grades_do_not_depend_on_crew_and_batch(driver: Cluster, source: CheckpointSource) -> None:
    exams = [
        exam("multiple_choice", items()["a/colors.jsonl"] * 5, shots=2),
        exam("schema", items()["a/pronouns.jsonl"]),
    ]
    exams[1].name = "other"
    told: list[str] = []

    found = [
        take_exams(source, exams, crew(n), batch_size=size, done=lambda m: told.append(m.exam.name))
        for n, size in ((1, 1), (1, 32), (2, 32))
    ]

    grades = [[marks.in_order() for marks in each] for each in found]
    assert grades[0] == grades[1] == grades[2]
    assert [len(each) for each in grades[0]] == [120, 8]
    assert sorted(told) == ["other"] * 3 + ["t"] * 3
    assert all(marks.actor_seconds > 0 for each in found for marks in each)


def test_an_actor_that_is_killed_starts_again(driver: Cluster, source: CheckpointSource) -> None:
    killed: list[int] = []

    def kill_one() -> None:
        while not examiners(driver):
            time.sleep(0.05)
        time.sleep(1.5)
        victim = examiners(driver)[0].pid
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

    killer = threading.Thread(target=kill_one)
    killer.start()
    [marks] = take_exams(source, [SlowExam()], crew(2))
    killer.join()

    assert killed
    assert [grade.is_correct for grade in marks.in_order()] == [i % 3 == 0 for i in range(200)]


def test_wrong_input_that_an_actor_finds_is_raised_as_such(
    driver: Cluster, source: CheckpointSource
) -> None:
    with pytest.raises(InputError, match="These questions are no questions"):
        take_exams(source, [BrokenExam()], crew(1))
    lost = CheckpointSource(source.storage, "r/pretrain@99", "float32")
    with pytest.raises(InputError, match="has no checkpoint of step 99"):
        take_exams(lost, [SlowExam()], crew(1))
    wait_for_their_end(driver)


def test_an_actor_without_room_takes_nothing_from_the_others(
    driver: Cluster, source: CheckpointSource
) -> None:
    """The cluster has 8 CPUs: the second actor never comes to life."""
    large = Crew(2, gpus_each=0, cpus_each=5, threads=1)

    [marks] = take_exams(source, [SlowExam()], large)

    assert marks.is_complete


def test_an_evaluation_gives_way(driver: Cluster, source: CheckpointSource) -> None:
    asked = iter([True, True, True])

    with pytest.raises(DisplacedError):
        take_exams(source, [SlowExam()], crew(1), may_go_on=lambda: next(asked, False))


def test_a_crew_fits_the_machine(driver: Cluster) -> None:
    most = choose_crew(None)

    assert most.gpus_each == 0
    assert 1 <= most.num_actors <= 4
    assert most.num_actors * most.cpus_each <= 8
    assert choose_crew(3).num_actors == 3
    with pytest.raises(InputError, match="--num-actors 0 is too small"):
        choose_crew(0)


@pytest.mark.parametrize(
    ("num_actors", "batch_size", "sizes"),
    [
        (1, 32, [64, 64, 64, 8]),
        (2, 100, [100, 100]),
        (4, 32, [50] * 4),
        (7, 32, [29] * 6 + [26]),
        (300, 32, [1] * 200),
    ],
)
def test_the_actors_share_an_exam(num_actors: int, batch_size: int, sizes: list[int]) -> None:
    parts = parts_of([SlowExam()], num_actors, batch_size)

    assert [len(indices) for _, indices in parts] == sizes
    assert [index for _, indices in parts for index in indices] == list(range(200))


def test_marks_are_in_the_order_of_the_questions() -> None:
    marks = Marks(SlowExam())
    marks.grades = {index: Grade(index > 100) for index in reversed(range(200))}

    assert marks.is_complete
    assert [g.is_correct for g in marks.in_order()][99:103] == [False, False, True, True]
