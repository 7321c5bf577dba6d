"""Rollouts by actors on a Ray cluster: weights go to them by reference, dead ones are replaced."""

import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from torch import Tensor

from nanoray.config import InputError, RunFailedError
from nanoray.model.gpt import DTYPES
from nanoray.rl.source import PartAsked, RolloutSource
from nanoray.rl.trajectory import Trajectory
from nanoray.train.device import own_device, prepare_process

logger = logging.getLogger(__name__)

Packed = dict[str, npt.NDArray[np.uint8]]
"""Weights as bytes. Ray keeps arrays outside of the pickle: 200 MB were put in 0.2 s, and are read
in place by all workers of a node; as tensors that took 0.3 to 0.5 s, and a copy in each worker."""

PROGRESS_SECONDS = 1.0
PATIENCE_SECONDS = 30.0
"""Without an answer for so long, it is said what is waited for."""
CLOSE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class RolloutCrew:
    """The workers: how many there are, and what each one has."""

    num_workers: int
    cpus_each: float = 1.0
    """Reserved at Ray; may be 0."""
    gpus_each: float = 0.0
    threads: int = 1
    """Of torch, in each."""
    questions_each: int | None = None
    """Questions that a worker gets at a time; None for as many as its engine answers at once. They
    are one batch, so another number gives other last bits."""
    max_restarts: int = 10
    """Of one worker, in a row without an answer of anyone."""
    answer_seconds: float = 600.0
    """A worker that takes longer for its part is taken for dead."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of the nodes on which workers may run, as Ray selects them."""

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            InputError: a number that is too small.
        """
        least = {"num_workers": 1, "cpus_each": 0, "gpus_each": 0, "threads": 1}
        for name, bound in {**least, "questions_each": 1, "max_restarts": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} must be at least {bound}, not {value}.")


class RolloutWorker:
    """An actor: holds rollouts, and the weights that were asked for last."""

    def __init__(self, threads: int) -> None:
        prepare_process(threads)
        self.loaded: str | None = None

    def ready(self, source: list[Any]) -> None:  # Any: one reference
        """Build the rollouts. Not done by the constructor, whose errors Ray takes for a death."""
        self.source: RolloutSource = ray.get(source[0])
        self.engine = self.source.build(own_device())

    def collect(
        self,
        weights: list[Any],  # Any: one reference
        part: PartAsked,
    ) -> list[list[Trajectory]]:
        """Answer some questions with some weights, which are fetched if they are others."""
        name = weights[0].hex()
        if name != self.loaded:
            self.loaded = None
            dtype = DTYPES[self.source.compute_dtype]
            self.engine.load_weights(unpack(ray.get(weights[0]), dtype))
            self.loaded = name
        return self.source.collect(self.engine, part)


@dataclass(eq=False)
class Part:
    """Some questions of one batch, asked of one worker."""

    asked: PartAsked
    weights: Any  # Any: a reference; held until the last part that needs them is done
    answers: "futures.Future[list[list[Trajectory]]]" = field(default_factory=futures.Future)


@dataclass(frozen=True)
class PendingRollouts:
    """A batch that was started."""

    parts: list[Part]


class RolloutWorkers:
    """Actors that answer questions while the caller does something else.

    Each actor has a thread here, which takes a part, asks, and takes the next one. All parts of a
    batch are drawn with the weights of the version that it was started with, whatever is published
    meanwhile. So trajectories follow from weights, questions, step and the size of the parts alone,
    to the bit on machines of one kind. An actor that dies gives its part back and is started anew;
    the cluster may have no room for it, and then the others go on without it. After an error that
    trying again does not help, nothing more can be asked.
    """

    def __init__(self, source: RolloutSource, crew: RolloutCrew) -> None:
        """Ask Ray, which must be connected, for the actors; does not wait for them."""
        self.on_progress: Callable[[], None] = lambda: None
        """Called while `finish` waits, to say that somebody lives."""
        fitting = max(1, source.engine.max_sequences // source.rollout.num_samples)
        self.crew, self.part_size = crew, crew.questions_each or fitting
        self._source = ray.put(source)
        self._newest: tuple[int, Any] | None = None  # Any: a reference
        self._changed = threading.Condition()
        """Guards all that follows."""
        self._waiting: deque[Part] = deque()
        self._open: set[Part] = set()
        self._num_finished = 0
        self._actors: dict[int, Any] = {}  # Any: handles
        self._error: Exception | None = None
        self._threads = [
            threading.Thread(target=self._serve, args=[slot], daemon=True, name=f"rollouts-{slot}")
            for slot in range(crew.num_workers)
        ]
        self._dtype = DTYPES[source.compute_dtype]
        for thread in self._threads:
            thread.start()

    def publish(self, weights: dict[str, Tensor], version: int) -> None:
        """Copy weights into the object store, for all batches that are started from now on."""
        self._newest = version, ray.put(pack(weights, self._dtype))

    def start(
        self,
        questions: Sequence[int],
        *,
        step: int,
        version: int,
        is_held_out: bool = False,
        repeats: Sequence[int] = (),
    ) -> PendingRollouts:
        """Let questions be answered with the newest weights; gives at once what `finish` needs.

        Args:
            questions: indices in the task.
            step: decides the draws, together with the config's seed and each question.
            version: of the newest weights.
            is_held_out: the questions are those of `RolloutSource.held_out`.
            repeats: how often the step has asked each question before; empty for never.

        Raises:
            ValueError: other weights were published last.
            InputError: see `finish`; of this batch or an earlier one.
            RunFailedError: see `finish`; of this batch or an earlier one.
        """
        if self._newest is None or self._newest[0] != version:
            newest = "nothing" if self._newest is None else f"version {self._newest[0]}"
            raise ValueError(f"Version {version} was asked for, and {newest} was published last.")
        size, weights = self.part_size, self._newest[1]
        cuts = [slice(first, first + size) for first in range(0, len(questions), size)]
        asked = [
            PartAsked(list(questions[cut]), step, version, is_held_out, list(repeats[cut]))
            for cut in cuts
        ]
        parts = [Part(one, weights) for one in asked]
        with self._changed:
            if self._error is not None:
                raise self._error
            self._waiting.extend(parts)
            self._open.update(parts)
            self._changed.notify_all()
        return PendingRollouts(parts)

    def finish(self, pending: PendingRollouts) -> list[list[Trajectory]]:
        """Wait for a batch; gives the group of each question, in their order.

        Raises:
            InputError: wrong input that only a worker could see.
            RunFailedError: workers died too often, or failed.
        """
        began = told = time.monotonic()
        for part in pending.parts:
            while not futures.wait([part.answers], PROGRESS_SECONDS).done:
                self.on_progress()
                now = time.monotonic()
                if now - told < PATIENCE_SECONDS:
                    continue
                told = now
                left = sum(len(p.asked.questions) for p in pending.parts if not p.answers.done())
                logger.info(
                    "%d questions are still to be answered, after %.0f s", left, now - began
                )
        return [group for part in pending.parts for group in part.answers.result()]

    def collect(
        self, questions: Sequence[int], *, step: int, version: int
    ) -> list[list[Trajectory]]:
        """Start a batch, and wait for it."""
        return self.finish(self.start(questions, step=step, version=version))

    def close(self) -> None:
        """End the actors; what is still asked fails."""
        self._fail(RunFailedError("The rollout workers were closed before they had answered."))
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)

    def __enter__(self) -> "RolloutWorkers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self, slot: int) -> None:
        """Keep one worker alive, and ask it, until all is over."""
        deaths, finished = 0, 0
        try:
            while self._error is None:
                try:
                    self._employ(slot)
                except ray.exceptions.RayTaskError as error:
                    raise plain_error(error) from None
                except ray.exceptions.RayError as error:
                    if self._error is not None:
                        return
                    deaths = 1 if self._num_finished > finished else deaths + 1
                    finished = self._num_finished
                    self._tell_of_death(deaths, error)
        except Exception as error:
            self._fail(error)

    def _tell_of_death(self, deaths: int, error: Exception) -> None:
        """Say that a worker has died, and what happens next.

        Raises:
            RunFailedError: it was the last straw.
        """
        most = self.crew.max_restarts
        reason = " ".join(str(error).split())
        if deaths > most:
            raise RunFailedError(
                f"A rollout worker has died {deaths} times in a row, and meanwhile no question was "
                f"answered ({reason}). If memory was short, give it fewer sequences at once."
            ) from error
        logger.warning(
            "a rollout worker has died and is started again (%d of %d in a row): %s",
            *(deaths, most, reason),
        )

    def _employ(self, slot: int) -> None:
        """Start a worker, and ask it until all is over; raises what Ray says of its end."""
        crew = self.crew
        with self._changed:
            if self._error is not None:
                return
            if not ray.is_initialized():  # it would start a cluster of its own
                raise RunFailedError("Ray was shut down while there were rollout workers.")
            remote: Any = ray.remote(RolloutWorker)  # Any: Ray's wrapper
            actor = self._actors[slot] = remote.options(
                num_cpus=crew.cpus_each,
                num_gpus=crew.gpus_each,
                scheduling_strategy="SPREAD",
                label_selector=crew.labels,
            ).remote(crew.threads)
        try:
            ray.get(actor.ready.remote([self._source]))
            while (part := self._next_part()) is not None:
                try:
                    answers = ray.get(
                        actor.collect.remote([part.weights], part.asked),
                        timeout=crew.answer_seconds,
                    )
                except ray.exceptions.RayError:
                    self._give_back(part)
                    raise
                self._settle(part, answers)
        finally:
            if ray.is_initialized():
                ray.kill(actor)  # one that Ray could not reach may come back

    def _next_part(self) -> Part | None:
        """Wait for questions; None when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._error is not None)
            return self._waiting.popleft() if self._error is None else None

    def _give_back(self, part: Part) -> None:
        """Let somebody else be asked, before all others."""
        with self._changed:
            self._waiting.appendleft(part)
            self._changed.notify_all()

    def _settle(self, part: Part, answers: list[list[Trajectory]]) -> None:
        """Take down what a part brought."""
        with self._changed:
            if part in self._open:
                self._open.remove(part)
                self._num_finished += 1
                part.answers.set_result(answers)

    def _fail(self, error: Exception) -> None:
        """End all: whoever waits for an answer gets the first error."""
        with self._changed:
            if self._error is None:
                self._error = error
            for part in self._open:
                part.answers.set_exception(self._error)
            self._open.clear()
            self._waiting.clear()
            actors, self._actors = self._actors, {}
            self._changed.notify_all()
        for actor in actors.values():
            if ray.is_initialized():
                ray.kill(actor)


def pack(weights: dict[str, Tensor], dtype: torch.dtype) -> Packed:
    """Round weights as an engine of this dtype does, and give their bytes."""
    return {
        name: weight.detach().to(dtype).cpu().contiguous().view(torch.uint8).numpy()
        for name, weight in weights.items()
    }


def unpack(packed: Packed, dtype: torch.dtype) -> dict[str, Tensor]:
    """Give the weights whose bytes these are; they share memory, and must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return {name: torch.from_numpy(array).view(dtype) for name, array in packed.items()}


def plain_error(error: ray.exceptions.RayTaskError) -> Exception:
    """Give what a worker found wrong, as if it had been found here."""
    if isinstance(error.cause, InputError | RunFailedError):
        return error.cause
    logger.error("%s", error)
    cause = error.cause or error
    return RunFailedError(f"A rollout worker failed: {type(cause).__name__}: {cause}")
