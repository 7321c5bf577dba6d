"""Exams spread over the cluster: each GPU, or some CPUs, hold a model that answers questions."""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
import torch

from evals.candidates import HuggingFaceModel, TrainedModel
from evals.exam import Candidate, Exam
from nanoray.cluster import connection
from nanoray.cluster.placement import for_computing
from nanoray.config import InputError, RunFailedError
from nanoray.model.gpt import DTYPES
from nanoray.task import Grade
from nanoray.train.checkpoint_name import SavedModel, find_steps
from nanoray.train.device import own_device, prepare_process

logger = logging.getLogger(__name__)

BATCH_SIZE = 32
"""Questions that a model answers at once, where nobody says otherwise."""
PART = 64
"""Questions that an actor gets at a time, or its share of an exam if that is less."""
PARTS_UNDER_WAY = 2
"""Per actor, so that it never waits for the next one; the last parts go to whoever is free."""
MOST_ON_A_NODE = 4
MOST_DEATHS = 12
"""Of actors, in one evaluation."""
LOOK_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
"""Without an answer for so long, it is said what is waited for."""


class DisplacedError(RuntimeError):
    """An evaluation that was ended because others need its place; it can be tried again."""


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
        # The driver has verified it.
        stage, [step] = find_steps(self.storage, self.name)
        saved = SavedModel(stage, step)
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
    """Decide how many actors there are: one per GPU, or up to four on each node without any.

    Raises:
        InputError: fewer than one, or more than there are GPUs.
    """
    have = connection.cluster_total()
    if num_actors is not None and num_actors < 1:
        raise InputError(f"--num-actors {num_actors} is too small. Give 1 or more.")
    gpus = int(have["GPU"])
    if gpus >= 1:
        if (num_actors or 0) > gpus:
            raise InputError(
                f"--num-actors {num_actors} is more than the {gpus} GPUs of the cluster. Give "
                f"{gpus} at most."
            )
        return Crew(num_actors or gpus, gpus_each=1, cpus_each=1, threads=4)
    nodes = [max(1, int(cpus)) for cpus in connection.node_cpus(have["CPU"])]
    count = num_actors or sum(min(cpus, MOST_ON_A_NODE) for cpus in nodes)
    per_node = -(-count // len(nodes))
    threads = max(1, min(nodes) // per_node)
    return Crew(count, gpus_each=0, cpus_each=min(1.0, min(nodes) / per_node), threads=threads)


class Examiner:
    """An actor: holds a model, and asks it."""

    def __init__(self, source: Source, threads: int, batch_size: int, niceness: int) -> None:
        os.nice(niceness)
        prepare_process(threads)
        self.source, self.batch_size = source, batch_size
        self.candidate: Candidate | None = None
        self.exams: dict[str, Exam] = {}

    def ready(self) -> tuple[list[Grade], float]:
        """Load the model; no grades yet."""
        device = own_device()
        self.candidate = self.source.load(device, self.batch_size)
        return [], 0.0

    def ask(
        self,
        name: str,
        where: list[Any],
        indices: Sequence[int],  # Any: one reference
    ) -> tuple[list[Grade], float]:
        """Ask some questions of an exam; gives the grades, and the seconds it took."""
        assert self.candidate is not None, "asked only when it is ready"
        if name not in self.exams:
            self.exams[name] = ray.get(where[0])
        began = time.perf_counter()
        grades = self.exams[name].take(self.candidate, indices)
        return grades, time.perf_counter() - began


@dataclass
class Marks:
    """What is known of one exam so far."""

    exam: Exam
    grades: dict[int, Grade] = field(default_factory=dict)
    actor_seconds: float = 0.0
    """Of all actors together."""
    began: float = 0.0
    ended: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every question was asked."""
        return len(self.grades) == len(self.exam)

    def in_order(self) -> list[Grade]:
        """Give the grades by the number of the question."""
        return [self.grades[index] for index in range(len(self.exam))]

    def add(self, indices: Sequence[int], grades: list[Grade], seconds: float) -> None:
        """Add what one part of the exam brought."""
        self.grades.update(zip(indices, grades, strict=True))
        self.actor_seconds += seconds
        self.ended = time.perf_counter()


Part = tuple[str, range]
"""Name of an exam, and some of its questions."""


def parts_of(exams: Sequence[Exam], num_actors: int, batch_size: int) -> list[Part]:
    """Cut exams into parts, such that no actor is left without while another has two."""
    return [
        (exam.name, range(start, min(start + size, len(exam))))
        for exam in exams
        for size in [min(max(PART, batch_size), -(-len(exam) // num_actors))]
        for start in range(0, len(exam), max(1, size))
    ]


class Proctor:
    """Hands the questions of exams to actors, and takes their grades down.

    A part is given only to an actor that has come to life. One that dies gives its parts back, and
    another one is started in its place; the cluster may have no room for that one, and then the
    others go on without it.
    """

    def __init__(self, source: Source, exams: Sequence[Exam], crew: Crew, batch_size: int) -> None:
        self.source, self.crew, self.batch_size = source, crew, batch_size
        self.marks = {exam.name: Marks(exam) for exam in exams}
        self.where = {exam.name: ray.put(exam) for exam in exams}
        self.parts = deque(parts_of(exams, crew.num_actors, batch_size))
        self.calls: dict[Any, tuple[Any, Part | None]] = {}  # Any: Ray's references and handles
        self.actors: list[Any] = []  # Any: handles
        self.idle: list[Any] = []  # Any: handles
        self.deaths = 0

    def run(self, done: Callable[[Marks], None], may_go_on: Callable[[], bool]) -> None:
        """Let everything be answered.

        Raises:
            InputError: wrong input that only an actor could see.
            RunFailedError: actors died too often, or failed.
            DisplacedError: it may not go on.
        """
        try:
            for _ in range(self.crew.num_actors):
                self._start_actor()
            quiet_since = told = time.monotonic()
            while not all(marks.is_complete for marks in self.marks.values()):
                if not may_go_on():
                    raise DisplacedError("others need what the evaluation has")
                ready, _ = ray.wait(list(self.calls), timeout=LOOK_SECONDS)
                now = time.monotonic()
                if ready:
                    quiet_since = told = now
                elif now - told > PATIENCE_SECONDS:
                    told = now
                    self._tell_of_waiting(now - quiet_since)
                for reference in ready:
                    self._take(reference, done)
        finally:
            for actor in self.actors:
                ray.kill(actor)

    def _start_actor(self) -> None:
        """Ask for an actor; it gets its first questions when it says that it is there."""
        crew = self.crew
        remote: Any = ray.remote(Examiner)  # Any: Ray's wrapper
        actor = remote.options(
            num_cpus=crew.cpus_each,
            num_gpus=crew.gpus_each,
            scheduling_strategy="SPREAD",
            label_selector=for_computing(),
        ).remote(self.source, crew.threads, self.batch_size, crew.niceness)
        self.actors.append(actor)
        self.calls[actor.ready.remote()] = actor, None

    def _take(self, reference: Any, done: Callable[[Marks], None]) -> None:  # Any: Ray's
        """Take down what a call brought, and give its actor the next questions."""
        if reference not in self.calls:
            return  # of an actor whose death was seen by another of its calls
        actor, part = self.calls.pop(reference)
        try:
            grades, seconds = ray.get(reference)
        except ray.exceptions.RayActorError as error:
            self._replace(actor, part, error)
            return
        except ray.exceptions.RayTaskError as error:
            raise plain_error(error) from None
        self._give(actor)
        if part is None:
            return
        name, indices = part
        self.marks[name].add(indices, grades, seconds)
        if self.marks[name].is_complete:
            done(self.marks[name])

    def _give(self, actor: Any) -> None:  # Any: a handle
        """Let an actor have enough parts; where there are none it is idle."""
        if not self.parts:
            self.idle.append(actor)
        has = sum(other is actor for other, _ in self.calls.values())
        while self.parts and has < self._parts_each():
            has += 1
            name, indices = part = self.parts.popleft()
            marks = self.marks[name]
            marks.began = marks.began or time.perf_counter()
            self.calls[actor.ask.remote(name, [self.where[name]], indices)] = actor, part

    def _parts_each(self) -> int:
        """Say how many parts an actor should have: one, when the last ones are handed out."""
        return PARTS_UNDER_WAY if len(self.parts) > self.crew.num_actors else 1

    def _replace(self, actor: Any, part: Part | None, error: Exception) -> None:  # Any: a handle
        """Take back what a dead actor had, and start another one.

        Raises:
            RunFailedError: it was the last straw.
        """
        lost = [ref for ref, (other, _) in self.calls.items() if other is actor]
        taken = [part, *(self.calls.pop(ref)[1] for ref in lost)]
        self.parts.extendleft(p for p in reversed(taken) if p is not None)
        self.actors.remove(actor)
        idle, self.idle = [a for a in self.idle if a is not actor], []
        for other in dict.fromkeys(idle):
            self._give(other)
        self.deaths += 1
        if self.deaths > MOST_DEATHS:
            raise RunFailedError(
                f"Actors of the evaluation have died {self.deaths} times ({error}). If memory was "
                "short, give fewer --num-actors or a smaller --batch-size."
            ) from error
        logger.warning(
            "an actor has died (%d of %d); another one is started", self.deaths, MOST_DEATHS
        )
        ray.kill(actor)  # it may come back
        self._start_actor()

    def _tell_of_waiting(self, seconds: float) -> None:
        """Say what is waited for."""
        working = sum(part is not None for _, part in self.calls.values())
        if working:
            logger.info("no answers for %.0f s; %d parts are under way", seconds, working)
        else:
            logger.info("waiting for room on the cluster, for %.0f s so far", seconds)


def take_exams(
    source: Source,
    exams: Sequence[Exam],
    crew: Crew,
    *,
    batch_size: int = BATCH_SIZE,
    done: Callable[[Marks], None] = lambda marks: None,
    may_go_on: Callable[[], bool] = lambda: True,
) -> list[Marks]:
    """Let a crew of actors answer all questions of all exams.

    Args:
        source: of the model.
        exams: with names that differ.
        crew: who answers.
        batch_size: questions that a model answers at once.
        done: is told of each exam that is complete.
        may_go_on: is asked every few seconds.

    Returns:
        The marks, in the order of the exams.

    Raises:
        InputError: wrong input that only an actor could see.
        RunFailedError: actors died too often, or failed.
        DisplacedError: it may not go on.
    """
    proctor = Proctor(source, exams, crew, batch_size)
    proctor.run(done, may_go_on)
    return [proctor.marks[exam.name] for exam in exams]


def plain_error(error: ray.exceptions.RayTaskError) -> Exception:
    """Give what an actor found wrong, as if it had been found here."""
    if isinstance(error.cause, InputError):
        return error.cause
    logger.error("%s", error)
    cause = error.cause or error
    return RunFailedError(f"An actor of the evaluation failed: {type(cause).__name__}: {cause}")
