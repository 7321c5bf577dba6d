"""What the driver of every training stage does: prepare with care, run the workers, report."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from nanoray.cluster import connection
from nanoray.cluster.deadline import Allowance
from nanoray.cluster.devices import CPU
from nanoray.cluster.group import Group, name_of_driver, run_on_workers
from nanoray.config import (
    InputError,
    RunConfig,
    RunReplacedError,
    RunStoppedError,
    continue_config,
    from_json,
    to_json,
)
from nanoray.credentials import without_secrets
from nanoray.data.blocks import layout_for
from nanoray.data.feed import start_pacer
from nanoray.data.plan import DataPlan
from nanoray.events import DONE, INTERRUPTED, append_event
from nanoray.goodput import read_account
from nanoray.progress import RunDisplay
from nanoray.shell_words import typed_command
from nanoray.stages.plan_feed import PlanFeed
from nanoray.stages.pretrain_config import checkpoint_bytes, most_checkpoints
from nanoray.stages.training_job import Recipe, TrainingJob
from nanoray.storage import StageFolder, with_patience, write_json
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.device import training_dtype

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=RunConfig, contravariant=True)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


Examine = Callable[[RunConfig, StageFolder, connection.Resources], None]
"""Looks at the cluster before a stage begins, and raises if something would stop it."""


class Evaluations(Protocol[Config]):
    """Evaluates what a stage saves, if its config asks for it."""

    def check(self, config: Config) -> None:
        """Read what is needed.

        Raises:
            InputError: it is not there.
        """
        ...

    def watch(self, job: TrainingJob) -> AbstractContextManager[None]:
        """Evaluate saved steps while the context is open, and what is left when it is closed."""
        ...


def on_gpu() -> bool:
    """Say whether the cluster trains on GPUs."""
    return connection.cluster_total()["GPU"] >= 1


def default_dtype() -> str:
    """Give the precision of the computation where nobody has chosen one."""
    if on_gpu():
        return "bfloat16"
    return str(training_dtype(torch.device("cpu"))).removeprefix("torch.")


def begun_config(config: AnyConfig, folder: StageFolder) -> AnyConfig | None:
    """Give the config of a stage that has begun, merged with what is asked for now.

    Raises:
        InputError: an identity field has another value.
    """
    saved = None if config.fresh else folder.read_config()
    if saved is None:
        if not config.fresh and folder.run.is_begun(folder.name):
            folder.run.forget_stage(folder.name)  # somebody has deleted its folder
        return None
    return continue_config(from_json(type(config), saved), config)


def check_space(
    config: RunConfig, recipe: Recipe, folder: StageFolder, resources: connection.Resources
) -> None:
    """Raise a StorageError if the storage has no room for what the stage still adds to it."""
    waiting = most_waiting(recipe, resources)
    num_kept = most_checkpoints(config, recipe.schedule.num_steps, waiting)
    num_more = max(1, num_kept - (0 if config.fresh else len(committed_steps(folder))))
    is_done = folder.run.is_done(folder.name) and not config.fresh
    folder.run.check_writable(0 if is_done else checkpoint_bytes(recipe.model) * num_more)


def most_waiting(recipe: Recipe, resources: connection.Resources) -> int:
    """Count the checkpoints that may have to be kept until they are evaluated."""
    if recipe.evaluate_every is None:
        return 0
    if resources.use_gpu and connection.gpus_present() <= resources.num_workers[1]:
        return recipe.schedule.num_steps // recipe.evaluate_every
    return 1


@dataclass(frozen=True)
class PlannedRows:
    """What a stage over a data plan reads in each step."""

    plan: DataPlan
    rows_per_step: int
    bytes_per_token: float
    rows_per_unit: float
    """On average, about."""
    validation_rows: int


def open_job(
    folder: StageFolder,
    config: RunConfig,
    *,
    recipe: Recipe,
    rows: PlannedRows,
    resources: connection.Resources,
) -> TrainingJob:
    """Write what a stage over a data plan begins with into its folder, and give the job."""
    most_workers = resources.num_workers[1]
    write_json(folder.fs, folder.path("manifest.json"), rows.plan.manifest.to_json())
    folder.write_config(to_json(config))
    layout = layout_for(rows.rows_per_step, recipe.device_batch_size, most_workers)
    pacer = start_pacer(layout, most_workers, resources.num_readers)
    return TrainingJob(
        stage=folder.name,
        config=config,
        recipe=recipe,
        storage=folder.run.storage,
        feed=PlanFeed(
            plan=rows.plan,
            layout=layout,
            resources=resources,
            bytes_per_token=rows.bytes_per_token,
            rows_per_unit=rows.rows_per_unit,
            validation_rows=rows.validation_rows,
            text_start=recipe.text_start,
            pacer=pacer,
        ),
        resources=resources,
        pacer=pacer,
    )


def planned(job: TrainingJob) -> PlanFeed:
    """Give the feed of a job over a data plan."""
    assert isinstance(job.feed, PlanFeed), "opened by open_job"
    return job.feed


def move_aside(folder: StageFolder) -> str | None:
    """Move an earlier stage aside and forget that it was done; gives its new place, if any."""
    if folder.run.read_state().get("stage") == folder.name:
        # Else a group that still trains it would save into the new folder.
        folder.run.begin_attempt(folder.name, name_of_driver())
    # Killed in between, a stage that is not done goes on; one that is done would have no files.
    folder.run.forget_stage(folder.name)
    moved = folder.move_aside()
    if moved is not None:
        logger.info("moved the earlier %s to %s", folder.name, moved)
    return moved


def describe_workers(job: TrainingJob) -> None:
    """Tell the user who computes."""
    least, most = job.resources.num_workers
    logger.info(
        "%s worker(s) on %s with %g CPUs and %d threads each",
        least if least == most else f"{least} to {most}",
        "GPU" if job.resources.use_gpu else "CPU",
        job.resources.cpus_per_worker,
        job.resources.threads_per_worker,
    )


def run_stage(
    job: TrainingJob,
    evaluations: Evaluations[AnyConfig] | None,
    finish: Callable[[TrainingJob], str],
    *,
    began: float,
) -> str:
    """Train unless that is done already, evaluate, and give what `finish` tells the user.

    `began` is when the job was started, in seconds since the epoch.
    """
    folder = job.folder
    with evaluations.watch(job) if evaluations else contextlib.nullcontext():
        if folder.run.is_done(job.stage):
            logger.info("%s is finished; --fresh begins it anew", folder)
        else:
            command = without_secrets(typed_command())
            append_event(folder, "start", time=began, command=command)
            train_on_cluster(job)
    return with_patience(lambda: finish(job), job.config.storage_patience_seconds, str(folder))


def train_on_cluster(job: TrainingJob) -> None:
    """Run the workers until the last step is saved."""
    display = RunDisplay(job.num_steps, log_every=job.config.log_every)
    group = Group(
        stage=job.stage,
        worker=job.work,
        take_attempt=job.take_attempt,
        begin=job.begin,
        newest_step=job.newest_step,
        record_begin=job.record_begin,
        record=job.record,
        device_batch_size=job.recipe.device_batch_size,
        pacer=job.pacer,
        resources=job.resources,
        max_restarts=job.config.max_restarts,
        hang_seconds=job.config.hang_seconds,
        allowance=allowance_of(job),
    )
    patience = job.config.storage_patience_seconds
    with recorded(job.folder, patience):
        result = run_on_workers(group, job.folder.run, display)
        assert isinstance(result, dict), "of `run_worker`"
        with_patience(lambda: mark_done(job, result), patience, str(job.folder))


def mark_done(job: TrainingJob, result: dict[str, Any]) -> None:  # Any: JSON
    """Record what rank 0 gave at the end, and that the stage is finished.

    Raises:
        RunReplacedError: another start has the run, which may have begun anew.
    """
    run = job.folder.run
    run.check_attempt(result["attempt"], result["driver"])
    packed = job.feed.totals()
    facts = {name: value for name, value in result.items() if name not in {"attempt", "driver"}}
    facts["dropped_tokens_share"] = packed.get("dropped_tokens", 0) / max(
        1, packed.get("tokens", 0)
    )
    write_json(job.folder.fs, job.folder.path("result.json"), facts)
    run.mark_done(job.stage)


def allowance_of(job: TrainingJob) -> Allowance | None:
    """Say what the stage may still spend.

    Raises:
        InputError: its money is spent already.
    """
    most = job.config.max_cost
    if most is None:
        return None
    cost = cost_of(job)
    if cost >= most:
        raise InputError(
            f"--max-cost {most:g} is spent: {job.folder} has cost ${cost:.2f} so far. "
            "Give more to go on."
        )
    return Allowance(most - cost, f"--max-cost {most:g} is spent")


def cost_of(job: TrainingJob) -> float:
    """Give what the stage has cost so far, in dollars.

    Nothing was counted on CPUs before somebody asked: that time costs what the workers cost now.
    """
    account = read_account(job.folder)
    if account.dollars is not None:
        return account.dollars
    workers = [CPU] * job.resources.num_workers[0]
    return job.price_of(workers) * account.unpriced_seconds / 3600


@contextlib.contextmanager
def recorded(folder: StageFolder, patience_seconds: float) -> Iterator[None]:
    """Record when the job asks the cluster for workers, and how it ended.

    A run that has ended well waits for its storage; one that failed tells of its own failure.
    """
    append_event(folder, "submit")
    try:
        yield
    except RunReplacedError:
        raise  # another start writes the events now
    except BaseException as error:
        is_wanted = isinstance(error, (KeyboardInterrupt, RunStoppedError))
        why = INTERRUPTED if is_wanted else type(error).__name__
        try:
            append_event(folder, "stop", why=why)
        except OSError as unwritten:
            logger.warning("%s could not be told how the job ended: %s", folder, unwritten)
        raise
    with_patience(lambda: append_event(folder, "stop", why=DONE), patience_seconds, str(folder))
