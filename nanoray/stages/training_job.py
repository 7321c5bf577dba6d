"""A training stage in the cluster: where its workers resume, and what each of them does."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeVar

import torch
from ray.data import DataIterator, Dataset

from nanoray.cluster.connection import Resources
from nanoray.cluster.group import RayWorld
from nanoray.cluster.monitor import Start
from nanoray.cluster.recovery import Cause, Decision, Failure
from nanoray.config import RunConfig, to_json
from nanoray.data.batches import StepRows
from nanoray.data.feed import Actor
from nanoray.data.plan import Cursor
from nanoray.events import append_event, failure_history, read_events
from nanoray.goodput import PRICE, Account, open_account
from nanoray.metrics import MetricsLogger, read_metrics
from nanoray.model.gpt import DTYPES, GPT, GPTConfig
from nanoray.model.scaling import flops_per_token
from nanoray.prices import dollars_per_hour
from nanoray.stages.samples import Samples, answer_questions, continue_texts
from nanoray.storage import RunFolder, StageFolder, with_patience
from nanoray.text.tokenizer import Tokenizer
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.checkpoint_files import committed_steps, first_step, lock_out
from nanoray.train.checkpoint_name import SavedModel
from nanoray.train.device import can_compile, peak_flops, peak_memory
from nanoray.train.guard import StepGuard
from nanoray.train.load_state import load_tensors
from nanoray.train.loop import LoopConfig, train
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.rollback import leave_out, start_cursor
from nanoray.train.save_interval import SaveConfig
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.validation import Validation
from nanoray.train.world import World
from nanoray.wandb_run import start_wandb

logger = logging.getLogger(__name__)

T = TypeVar("T")

SHARED_SECONDS = 90.0
"""How long a worker waits to see on its storage what the driver wrote: NFS may show an old file for
a minute."""


@dataclass(frozen=True)
class Recipe:
    """What a stage trains and how, every value decided; it follows from the stage's config."""

    model: GPTConfig
    dtype: str
    optimizer: OptimizerConfig
    schedule: Schedule
    device_batch_size: int
    validate_every: int
    text_start: int | None = None
    """As in `StepConfig`."""
    start: SavedModel | None = None
    """Whose weights the stage begins with; None for those that the seed gives."""
    warm_start: bool = False
    """Begin with the averages of that checkpoint's optimizer too."""
    evaluate_every: int | None = None
    """Steps between evaluations, if there are any."""
    prompts: tuple[str, ...] = ()
    """What the model goes on from, or answers, when the stage ends."""
    is_chat: bool = False
    """The prompts are a user's."""
    sample_tokens: int = 64
    most_importance: float = 2.0
    """As in `StepConfig`."""


class Feed(Protocol):
    """Where the rows of a stage come from, and what it is validated on."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What the rows are made with."""
        ...

    @property
    def hash(self) -> str:
        """Hash over all that decides the rows."""
        ...

    def begin(self, cursor: Cursor, *, step: int, num_steps: int) -> Dataset:
        """Give the stream of a group that starts after `step` steps, at a cursor."""
        ...

    def open(
        self, world: World, shard: DataIterator, step: int
    ) -> Callable[[TrainState], Iterator[StepRows]]:
        """Begin to read what follows `step` steps, while the state is built.

        Returns:
            What gives, for the state of that step, this rank's rows of step after step.
        """
        ...

    def validation(self, world: World, device_batch_size: int) -> Validation:
        """Give what the stage is measured by."""
        ...

    def is_empty(self, position: int) -> bool:
        """Say whether the unit at a position gives no row."""
        ...

    def totals(self) -> dict[str, int]:
        """Give sums over what was packed so far."""
        ...


@dataclass(frozen=True)
class TrainingJob:
    """All that controller and workers need to know of one stage of a run."""

    stage: str
    config: RunConfig
    """Decided."""
    recipe: Recipe
    storage: str
    feed: Feed
    resources: Resources
    pacer: Actor

    @property
    def folder(self) -> StageFolder:
        """The stage's folder."""
        assert self.config.run, "decided"
        return RunFolder(self.storage, self.config.run).stage(self.stage)

    @property
    def model(self) -> GPTConfig:
        """The model's shape and numerics."""
        return self.recipe.model

    @property
    def num_steps(self) -> int:
        """Length of the stage."""
        return self.recipe.schedule.num_steps

    def newest_step(self) -> int:
        """Give the newest step that was committed, 0 before there is one; it is not verified."""
        return self._patiently(lambda: ([0, *committed_steps(self.folder)])[-1])

    def record_begin(self, start: Start, devices: list[str]) -> float | None:
        """Record that a group has its workers, with the device of each; gives its price.

        Called in Ray Train's controller after `begin`, before the workers do anything.
        """
        return self._patiently(lambda: self._record_begin(start, devices))

    def record(self, attempt: int, failure: Failure, decision: Decision) -> None:
        """Record a failure of the group among the events of the run.

        Raises:
            RunReplacedError: another start has the run, whose events they are now.
        """
        self._patiently(lambda: self._record(attempt, failure, decision))

    def _record(self, attempt: int, failure: Failure, decision: Decision) -> None:
        if attempt:  # none has been taken before the first group has its workers
            self.folder.run.check_attempt(attempt)
        if failure.cause is Cause.GROWTH:
            append_event(self.folder, "growth")
            return
        facts = {"cause": failure.cause.value, "rank": failure.rank, "again": decision.again}
        append_event(self.folder, "failure", **facts)

    def take_attempt(self, driver: str, after: int) -> int:
        """Number the next attempt, as `RunFolder.begin_attempt` does."""
        run = self.folder.run
        return self._patiently(lambda: run.begin_attempt(self.stage, driver, after=after))

    def begin(self, attempt: int) -> tuple[int, Dataset]:
        """Lock earlier attempts out, pick the step to start from, and give the stream from there.

        Runs in Ray Train's controller before every start of the group, like all methods above.
        """
        return self._patiently(lambda: self._begin(attempt))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Call what reads or writes the run's folder, for as long as storage may fail."""

        def look_and_work() -> T:
            self.folder.check_present()
            return work()

        return with_patience(look_and_work, self.config.storage_patience_seconds, str(self.folder))

    def _begin(self, attempt: int) -> tuple[int, Dataset]:
        folder = self.folder
        # In this order: to verify a checkpoint may take minutes, in which a group that was cut off
        # could commit a newer one.
        lock_out(folder)
        step = first_step(folder)
        cursor = start_cursor(folder, step)
        folder.run.record_start(attempt, step)
        logger.info(
            "attempt %d starts %s",
            attempt,
            f"from the checkpoint of step {step}" if step else "anew",
        )
        return step, self.feed.begin(cursor, step=step, num_steps=self.num_steps)

    def _record_begin(self, start: Start, devices: list[str]) -> float | None:
        folder = self.folder
        folder.run.check_attempt(start.attempt, start.driver)  # the events are the newest one's
        facts = {"attempt": start.attempt, "step": start.step}
        price = self.price_of(devices) if self.has_price() else None
        known = {} if price is None else {PRICE: price}
        append_event(folder, "begin", **facts, num_workers=len(devices), **known)
        return price

    def price_of(self, devices: list[str]) -> float:
        """Give the dollars per hour of a group: of its workers, and of the GPUs beside them.

        Each worker brings its share of what is used beside all of them, at its own price.
        """
        given, resources = self.config.dollars_per_gpu_hour, self.resources
        beside = resources.gpus_beside / resources.num_workers[1]
        return sum((1 + beside) * dollars_per_hour(given, device) for device in devices)

    def has_price(self) -> bool:
        """Say whether the cost is counted: on CPUs, if somebody has asked for it."""
        config = self.config
        is_asked = config.max_cost is not None or config.dollars_per_gpu_hour is not None
        was_asked = any(PRICE in event for event in read_events(self.folder))
        return self.resources.use_gpu or is_asked or was_asked

    def work(self, world: RayWorld, shard: DataIterator) -> dict[str, Any]:  # Any: JSON
        """Train on this worker; gives what the driver tells the user at the end."""
        return run_worker(self, world, shard, world.start)


def run_worker(
    job: TrainingJob, world: World, shard: DataIterator, start: Start
) -> dict[str, Any]:  # Any: JSON
    """Build the state, resume it, train, and let rank 0 write some samples.

    Raises:
        StorageError: the storage here is not the one in which the attempt was begun.
    """
    job = replace(job, recipe=replace(job.recipe, device_batch_size=start.device_batch_size))
    config, recipe, folder, start_step = job.config, job.recipe, job.folder, start.step
    # Else a machine that does not share the storage would train, and save what nobody finds.
    check = partial(folder.run.check_attempt, start.attempt, start.driver)
    with_patience(check, SHARED_SECONDS, str(folder))
    # Not from the first step on: readers would compete with what measures this CPU's peak.
    rows_for = job.feed.open(world, shard, start_step) if start_step else None
    state = build_state(job, world)
    checkpointer = Checkpointer(
        folder,
        world,
        attempt=start.attempt,
        driver=start.driver,
        facts=checkpoint_facts(job),
        policy=SavePolicy(
            config.keep_last,
            config.keep_every,
            is_wanted=partial(is_wanted, folder, recipe.evaluate_every, tuple(config.save_at)),
            patience_seconds=config.storage_patience_seconds,
        ),
    )
    if start_step:
        checkpointer.restore(state, start_step)
    elif recipe.start is not None:
        load_tensors(state, recipe.start, with_optimizer=recipe.warm_start)
    leave_out(state, folder)
    loop = loop_config(job, world)
    steps = (rows_for or job.feed.open(world, shard, start_step))(state)
    # Every rank must have opened its part of the stream before the first collective.
    first = next(steps)
    if world.rank == 0:
        check()  # the logs may be another group's by now
    account = open_account(folder, start_step) if world.rank == 0 else Account(time.time())
    metrics = open_metrics(job, world, start_step, check)
    validation = job.feed.validation(world, loop.device_batch_size)
    gc.freeze()  # what exists now lives as long as the run
    train(state, chain([first], steps), validation, loop, world, checkpointer, metrics, account)
    metrics.close()
    if world.rank != 0:
        return {}
    return {
        "attempt": start.attempt,
        "driver": start.driver,
        "samples": write_samples(job, state),
        "peak_memory_bytes": peak_memory(world.device),
    }


def is_wanted(
    folder: StageFolder, evaluate_every: int | None, save_at: tuple[int, ...], step: int
) -> bool:
    """Say whether a step is kept for good, or until it is evaluated."""
    if step in save_at or SavedModel(folder, step).is_kept():
        return True
    if evaluate_every is None or step % evaluate_every:
        return False
    return not SavedModel(folder, step).is_evaluated()


def build_state(job: TrainingJob, world: World) -> TrainState:
    """Give model and optimizer on this rank's device, with the weights that the seed gives."""
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    config, recipe = job.config, job.recipe
    model = GPT(recipe.model, DTYPES[recipe.dtype])
    model.init_weights(config.seed)
    model.to(world.device)
    optimizer = MuonAdamW(model, recipe.optimizer, world)
    if not config.eager and can_compile(world.device):
        model.compile()
        optimizer.compile()
    elif not config.eager:
        logger.warning("no C++ compiler was found, so nothing is compiled and training is slower")
    return TrainState(model, optimizer, guard=StepGuard(config.skip_sigmas or None))


def checkpoint_facts(job: TrainingJob) -> dict[str, Any]:  # Any: JSON
    """Say what a checkpoint must share with the run that loads it."""
    return {
        "model": job.model.to_json(),
        "tokenizer_hash": job.feed.tokenizer.hash,
        "data_hash": job.feed.hash,
    }


def open_metrics(
    job: TrainingJob, world: World, start_step: int, check: Callable[[], None]
) -> MetricsLogger:
    """Open the logs on rank 0; on other ranks, one that writes nothing."""
    if world.rank != 0:
        return MetricsLogger(None, last_step=start_step)
    project = job.config.wandb_project
    wandb = (
        start_wandb(project, job.folder, to_json(job.config), job.config.wandb_group)
        if project
        else None
    )
    return MetricsLogger(job.folder, last_step=start_step, wandb=wandb, check=check)


def loop_config(job: TrainingJob, world: World) -> LoopConfig:
    """Decide what the loop needs to know."""
    config, recipe = job.config, job.recipe
    minutes = config.save_every_minutes
    return LoopConfig(
        schedule=recipe.schedule,
        device_batch_size=recipe.device_batch_size,
        text_start=recipe.text_start,
        most_importance=recipe.most_importance,
        save=SaveConfig(
            every_steps=config.save_every,
            every_seconds=None if minutes is None else 60 * minutes,
            multiples_of=recipe.evaluate_every,
            at_steps=tuple(config.save_at),
            history=failure_history(read_events(job.folder)),
        ),
        validate_every=recipe.validate_every,
        flops_per_token=flops_per_token(job.model),
        peak_flops=known_peak(job, world) or peak_flops(world.device, DTYPES[recipe.dtype]),
        is_empty=job.feed.is_empty,
        max_skipped_steps=config.max_skipped_steps,
        max_rollbacks=config.max_rollbacks,
    )


def known_peak(job: TrainingJob, world: World) -> float | None:
    """Give the peak that an earlier start has measured: on a CPU that takes a second.

    Only rank 0 writes down the utilization that is counted against it.
    """
    if world.rank != 0:
        return math.inf
    if world.device.type == "cuda":
        return None
    records = read_metrics(job.folder.fs, job.folder.path("metrics.jsonl"))
    return records[-1].get("train/peak_flops") if records else None


def write_samples(job: TrainingJob, state: TrainState) -> Samples:
    """Let the model continue, or answer, the prompts of its stage."""
    recipe = job.recipe
    write = answer_questions if recipe.is_chat else continue_texts
    return write(state.model, job.feed.tokenizer, recipe.prompts, recipe.sample_tokens)
