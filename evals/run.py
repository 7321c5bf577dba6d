"""Exams spread over the cluster: each GPU, or some CPUs, hold a model that answers questions."""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import torch

from evals.candidates import HuggingFaceModel, TrainedModel
from evals.exam import Candidate, Exam
from nanoray.cluster import connection
from nanoray.config import InputError, RunFailedError
from nanoray.model.gpt import DTYPES
from nanoray.task import Grade
from nanoray.train.checkpoint_name import find_model

logger = logging.getLogger(__name__)

PART_SIZE = 64
"""Questions that an actor gets at a time."""
PARTS_UNDER_WAY = 2
"""Per actor, so that it never waits for the next one."""
MOST_CPU_ACTORS = 4
ACTOR_RESTARTS = 3
PATIENCE_SECONDS = 10.0
"""Without an answer for so long, it is said what is waited for."""


class Source(Protocol):
    """Where an actor gets its model from; it is sent there instead of the weights."""

    def load(self, device: torch.device, batch_size: int) -> Candidate:
        """Load the model."""
        ...


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint of a run."""

    storage: str
    name: str
    """RUN/stage@step."""
    dtype: str

    def load(self, device: torch.device, batch_size: int) -> TrainedModel:
        """Load weights and tokenizer from storage."""
        saved = find_model(self.storage, self.name)
        model = saved.load(DTYPES[self.dtype], device).requires_grad_(False)
        return TrainedModel(model, saved.tokenizer(), batch_size=batch_size)


@dataclass(frozen=True)
class FolderSource:
    """A Hugging Face model; every node must see its folder."""

    folder: str
    dtype: str

    def load(self, device: torch.device, batch_size: int) -> HuggingFaceModel:
        """Load the model."""
        return HuggingFaceModel(self.folder, DTYPES[self.dtype], device)


@dataclass(frozen=True)
class Crew:
    """The actors of an evaluation."""

    num_actors: int
    gpus_each: int
    cpus_each: float
    """Reserved at Ray."""
    threads: int
    """Of torch, in each."""
    niceness: int = 0
    """Of their processes: how readily they give way to others on their CPUs."""


def choose_crew(num_actors: int | None) -> Crew:
    """Decide how many actors there are: one per GPU, or as many as the CPUs of a small machine.

    Raises:
        InputError: fewer than one.
    """
    have = connection.cluster_total()
    if num_actors is not None and num_actors < 1:
        raise InputError(f"--num-actors {num_actors} is too small. Give 1 or more.")
    if have["GPU"] >= 1:
        return Crew(num_actors or int(have["GPU"]), gpus_each=1, cpus_each=1, threads=4)
    cores = os.cpu_count() or 1
    count = num_actors or min(cores, MOST_CPU_ACTORS)
    share = min(1.0, int(100 * have["CPU"] / count) / 100)
    return Crew(count, gpus_each=0, cpus_each=share, threads=max(1, cores // count))


class Examiner:
    """An actor: holds a model, and asks it."""

    def __init__(self, source: Source, threads: int, batch_size: int, niceness: int) -> None:
        os.nice(niceness)
        torch.set_num_threads(threads)
        self.source, self.batch_size = source, batch_size
        self.candidate: Candidate | None = None
        self.exams: dict[str, Exam] = {}

    def ask(
        self,
        name: str,
        where: list[Any],
        indices: Sequence[int],  # Any: one reference
    ) -> tuple[list[Grade], float]:
        """Ask some questions of an exam; gives the grades, and the seconds it took."""
        if name not in self.exams:
            self.exams[name] = ray.get(where[0])
        if self.candidate is None:  # here, and not before: what fails in a method can be told
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            self.candidate = self.source.load(device, self.batch_size)
        began = time.perf_counter()
        grades = self.exams[name].take(self.candidate, indices)
        return grades, time.perf_counter() - began


@dataclass
class Marks:
    """What is known of one exam so far."""

    exam: Exam
    grades: dict[int, Grade] = field(default_factory=dict)
    seconds: float = 0.0
    """Of all actors together."""

    @property
    def is_complete(self) -> bool:
        """Whether every question was asked."""
        return len(self.grades) == len(self.exam)

    def in_order(self) -> list[Grade]:
        """Give the grades by the number of the question."""
        return [self.grades[index] for index in range(len(self.exam))]


def take_exams(
    source: Source,
    exams: Sequence[Exam],
    crew: Crew,
    batch_size: int,
    done: Callable[[Marks], None],
) -> list[Marks]:
    """Let a crew of actors answer all questions of all exams.

    An actor that dies starts again and gets the same questions; an error of the model or of a task
    is raised here.

    Args:
        source: of the model.
        exams: with names that differ.
        crew: who answers.
        batch_size: questions that a model answers at once.
        done: is told of each exam that is complete.

    Returns:
        The marks, in the order of the exams.
    """
    actors = start_actors(source, crew, batch_size)
    marks = {exam.name: Marks(exam) for exam in exams}
    where = {exam.name: ray.put(exam) for exam in exams}
    parts = deque(
        (exam.name, range(start, min(start + PART_SIZE, len(exam))))
        for exam in exams
        for start in range(0, len(exam), PART_SIZE)
    )
    under_way: dict[Any, tuple[Any, str, range]] = {}  # Any: Ray's references and handles

    def give(actor: Any) -> None:  # Any: a handle
        if parts:
            name, indices = parts.popleft()
            reference = actor.ask.remote(name, [where[name]], indices)
            under_way[reference] = actor, name, indices

    with plain_errors(), ended(actors):
        for actor in actors * PARTS_UNDER_WAY:
            give(actor)
        while under_way:
            ready, _ = ray.wait(list(under_way), timeout=PATIENCE_SECONDS)
            if not ready and not any(m.grades for m in marks.values()):
                logger.info("waiting for room on the cluster, or for the model to be loaded")
            for reference in ready:
                actor, name, indices = under_way.pop(reference)
                give(actor)
                grades, seconds = ray.get(reference)
                take_down(marks[name], indices, grades, seconds)
                if marks[name].is_complete:
                    done(marks[name])
    return [marks[exam.name] for exam in exams]


@contextlib.contextmanager
def ended(actors: list[Any]) -> Iterator[None]:  # Any: handles
    """End the actors, whatever happens."""
    try:
        yield
    finally:
        for actor in actors:
            ray.kill(actor)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Raise what an actor found wrong as if it had been found here.

    Raises:
        InputError: wrong input, which only the actor could see.
        RunFailedError: an actor died too often.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, InputError) else error from None
    except ray.exceptions.RayActorError as error:
        raise RunFailedError(
            f"An actor of the evaluation has died {1 + ACTOR_RESTARTS} times ({error}). If memory "
            "was short, give fewer --num-actors or a smaller --batch-size."
        ) from error


def take_down(marks: Marks, indices: Sequence[int], grades: list[Grade], seconds: float) -> None:
    """Add what one part of an exam brought."""
    marks.grades.update(zip(indices, grades, strict=True))
    marks.seconds += seconds


def start_actors(source: Source, crew: Crew, batch_size: int) -> list[Any]:  # Any: handles
    """Start the actors; those that find no room wait for it."""
    remote: Any = ray.remote(Examiner)  # Any: Ray's wrapper
    options = remote.options(
        num_cpus=crew.cpus_each,
        num_gpus=crew.gpus_each,
        max_restarts=ACTOR_RESTARTS,
        max_task_retries=ACTOR_RESTARTS,
    )
    return [
        options.remote(source, crew.threads, batch_size, crew.niceness)
        for _ in range(crew.num_actors)
    ]
