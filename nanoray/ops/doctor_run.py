"""The run that is meant, as far as it can be decided before it starts, whatever is wrong with it.

One fault must not hide the next: where the run's own folder or tokenizer cannot be read, the rest
is decided from the flags alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from nanoray.cluster import connection
from nanoray.config import InputError, StorageError
from nanoray.data.blocks import layout_for
from nanoray.data.datasets import DATASETS
from nanoray.data.feed import window_rows
from nanoray.model.scaling import flops_per_token, gpu_peak_flops, num_parameters
from nanoray.ops.doctor_data import ExpectedData, expect_data
from nanoray.ops.doctor_findings import Finding, failed_with, ok, skipped
from nanoray.ops.doctor_run_checks import Saving
from nanoray.ops.plan import PlanConfig
from nanoray.stages.pretrain import STAGE, open_stage, recipe_of
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    check_rows,
    checkpoint_bytes,
    most_checkpoints,
    rows_per_step,
)
from nanoray.stages.stage_driver import most_waiting
from nanoray.stages.training_job import Recipe
from nanoray.storage import RunFolder, StageFolder, is_outage
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.save_interval import MOST_SECONDS

T = TypeVar("T")

NOWHERE = "memory://nowhere"
"""Stands for a storage that cannot even be opened; nothing is in it, and nothing is written."""


@dataclass(frozen=True)
class MeantRun:
    """The run that is meant, as far as it can be decided before it starts."""

    config: PretrainConfig
    """Decided; as it was given where that does not work out."""
    folder: StageFolder
    recipe: Recipe | None
    """None where the settings do not work out."""
    resources: connection.Resources | None = None
    """None where the workers find no room."""
    settings_errors: tuple[Exception, ...] = ()
    """Why the settings do not work out, or could not be compared with those it began with."""
    room_error: Exception | None = None
    assumes_vocabulary: bool = False
    """Its tokenizer cannot be read, and that alone knows the size."""


def attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Call what wrong input or storage that is away may stop; gives its result, or the error."""
    try:
        return work(), None
    except Exception as error:
        if not isinstance(error, InputError) and not is_outage(error):
            raise
        return None, error


def is_of_storage(error: Exception) -> bool:
    """Say whether it is a storage that has failed, and not what the user wants of it."""
    return isinstance(error, StorageError) or is_outage(error)


def open_run(config: PretrainConfig, storage: str) -> MeantRun:
    """Decide a run's config together with the one it began with."""
    decided, folder = open_stage(config, storage)
    return MeantRun(decided, folder, recipe_of(decided))


def settle(config: PretrainConfig, storage: str) -> MeantRun:
    """Decide the run as its own driver will; what does not work out stands in it as errors."""
    run, error = attempt(lambda: open_run(config, storage))
    if run is None:
        assert error, "no run without an error"
        run = settle_anyway(config, storage, error)
    meant = run
    resources, problem = attempt(lambda: connection.choose_resources(meant.config))
    if resources is not None and meant.recipe is not None:
        rows, most = rows_per_step(meant.config), resources.num_workers[1]
        _, problem = attempt(lambda: check_rows(meant.config, rows, most))
    return dataclasses.replace(meant, resources=resources, room_error=problem)


def settle_anyway(config: PretrainConfig, storage: str, error: Exception) -> MeantRun:
    """Decide a run from its flags, without the files that its own driver reads.

    Args:
        config: as the user gave it.
        storage: of the runs.
        error: with which the driver will stop.
    """
    asked, assumes = config, False
    if config.tokenizer is not None and not tokenizer_is_read(config.tokenizer):
        asked, assumes = dataclasses.replace(config, tokenizer=None), config.vocab_size is None
        run, other = attempt(lambda: open_run(asked, storage))
        if run is not None:
            return as_given(run, config, fresh=config.fresh, assumes=assumes)
        error = other or error
    unread = dataclasses.replace(asked, fresh=True)
    for place in (storage, NOWHERE):
        run, other = attempt(functools.partial(open_run, unread, place))
        if run is not None:
            fresh = config.fresh or is_of_storage(error)
            run = as_given(run, config, fresh=fresh, assumes=assumes)
            return dataclasses.replace(run, settings_errors=(error,))
    errors = (error,) if other is None or str(other) == str(error) else (error, other)
    folder = RunFolder(NOWHERE, config.run or "run").stage(STAGE)
    given = dataclasses.replace(config, fresh=True)
    return MeantRun(given, folder, None, settings_errors=errors)


def tokenizer_is_read(tokenizer: str) -> bool:
    """Say whether what --tokenizer names can be read."""
    return attempt(lambda: load_tokenizer(connection.absolute_address(tokenizer)))[1] is None


def as_given(run: MeantRun, config: PretrainConfig, *, fresh: bool, assumes: bool) -> MeantRun:
    """Give a run those flags again which were set aside for it to be decided."""
    decided = dataclasses.replace(run.config, tokenizer=config.tokenizer, fresh=fresh)
    return dataclasses.replace(run, config=decided, assumes_vocabulary=assumes)


def list_data(run: MeantRun, storage: str) -> ExpectedData | None:
    """List the shards of a run; None where nobody can say how many of a dataset it takes."""
    if run.recipe is None and run.config.data in DATASETS:
        return None
    return expect_data(run.config, run.folder, storage)


def settings_findings(run: MeantRun, *, storage_is_away: bool) -> list[Finding]:
    """Say what of the settings does not work out, or else is not known; nothing if all is well."""
    own = [e for e in run.settings_errors if not (storage_is_away and is_of_storage(e))]
    if own:
        remedy = "Let this user read it, or give another --run."
        return [failed_with("settings", error, remedy) for error in own]
    unknown = []
    if run.settings_errors:
        unknown.append("the storage does not answer: the rest is for a run that has not begun")
    if run.assumes_vocabulary and run.recipe is not None:
        ids = f"{run.recipe.model.vocab_size:,}"
        unknown.append(f"the tokenizer cannot be read: {ids} ids are assumed for the rest")
    return [skipped("settings", "; ".join(unknown))] if unknown else []


def room_finding(run: MeantRun) -> Finding:
    """Say whether the workers find room."""
    if run.room_error is not None:
        return failed_with("room", run.room_error, "Give fewer --num-workers, or add nodes.")
    assert run.resources, "no error without"
    least, most = run.resources.num_workers
    workers = f"{least}" if least == most else f"{least} to {most}"
    kind = "GPU" if run.resources.use_gpu else "CPU"
    each = f"{run.resources.cpus_per_worker:g} CPUs each"
    found = f"room for {workers} worker(s) on {kind}, {each}"
    if run.recipe is None:
        return ok("room", found)
    params = f"{num_parameters(run.recipe.model):,} parameters"
    place = "" if run.folder.run.storage == NOWHERE else f"{run.folder}, "
    return ok("room", f"{place}{params}: {found}")


def any_room(run: MeantRun) -> connection.Resources | None:
    """Choose the workers of a run, or those for which there is room where it asks for too many."""
    usual = dataclasses.replace(run.config, num_workers=None, cpus_per_worker=None)
    return run.resources or attempt(lambda: connection.choose_resources(usual))[0]


def stream_bytes(run: MeantRun | None) -> float | None:
    """Say what the rows under way take in the object stores: twice, because blocks are cut."""
    if run is None or run.resources is None or run.recipe is None:
        return None
    most = run.resources.num_workers[1]
    layout = layout_for(rows_per_step(run.config), run.recipe.device_batch_size, most)
    row = 4 * (run.recipe.model.max_seq_len + 1) + 24
    return 2.0 * row * window_rows(layout, most)


def saving_of(run: MeantRun | None, gpu: str | None) -> Saving | None:
    """Say how much the run writes, and how often."""
    if run is None or run.recipe is None:
        return None
    config, model = run.config, run.recipe.model
    waiting = most_waiting(run.recipe, run.resources) if run.resources else 0
    return Saving(
        checkpoint_bytes=checkpoint_bytes(model),
        weights_bytes=4 * num_parameters(model),
        num_kept=most_checkpoints(config, run.recipe.schedule.num_steps, waiting),
        interval_seconds=save_interval(run, run.recipe, gpu),
    )


def save_interval(run: MeantRun, recipe: Recipe, gpu: str | None) -> float | None:
    """Estimate the seconds between two checkpoints, None where nobody knows how long a step is.

    Left to itself a run saves once an hour or more often, as its storage lets it.
    """
    config = run.config
    asked = [] if config.save_every_minutes is None else [60 * config.save_every_minutes]
    if config.save_every is not None:
        peak = gpu_peak_flops(gpu, recipe.dtype) if gpu else None
        if peak is None or run.resources is None:
            return asked[0] if asked else None
        workers = run.resources.num_workers[1]
        flops = rows_per_step(config) * recipe.model.max_seq_len * flops_per_token(recipe.model)
        asked.append(config.save_every * flops / (PlanConfig.mfu * peak * workers))
    return min(asked, default=MOST_SECONDS)
