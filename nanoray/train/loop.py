"""The one training loop: steps, checkpoints, validation; retrying is somebody else's."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from nanoray.data.batches import StepRows
from nanoray.goodput import Account
from nanoray.metrics import MetricsLogger
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.rollback import roll_back
from nanoray.train.save_interval import SaveConfig, SaveInterval
from nanoray.train.state import TrainState
from nanoray.train.step import SaveVotes, StepConfig, StepResult, train_step
from nanoray.train.validation import Validation
from nanoray.train.world import AskedToStopError, RoomForMoreError, Wish, World, all_reduce_sum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopConfig(StepConfig):
    """What the loop needs to know, every value decided."""

    save: SaveConfig
    validate_every: int
    flops_per_token: float
    """For forward and backward, from `model.scaling`."""
    peak_flops: float
    """Of one rank's device per second, in the compute dtype."""
    max_skipped_steps: int
    """In a row: then the run is rolled back."""
    max_rollbacks: int

    @property
    def num_steps(self) -> int:
        """Steps in the whole run."""
        return self.schedule.num_steps


def train(  # noqa: PLR0913, PLR0917 (the eight things that training is made of)
    state: TrainState,
    steps: Iterator[StepRows],
    validation: Validation,
    config: LoopConfig,
    world: World,
    checkpointer: Checkpointer,
    metrics: MetricsLogger,
    account: Account,
) -> None:
    """Train until `config.num_steps` steps are done.

    Args:
        state: where the run stands; changed in place.
        steps: this rank's rows of step after step, beginning at `state.cursor`.
        validation: what the stage is measured by.
        config: how long, how often, how large.
        world: this rank among the others.
        checkpointer: where states are saved.
        metrics: where each step is written down.
        account: of the time that is spent.

    Raises:
        DivergedError: the run was rolled back on disk, and has to be started again.
        RollbackLimitError: it was rolled back too often, and should not.
        RoomForMoreError: a larger group can go on.
        AskedToStopError: somebody wants the run to stop.
    """
    save_is_due, interval = False, SaveInterval(config.save, world.world_size, state.step)
    if validation_is_missing(validation.key, state.step, config, world, metrics):
        metrics.amend(measured(state, validation))
    try:
        while state.step < config.num_steps:
            wanted = world.rank == 0 and (interval.is_due(state.step + 1) or bool(world.wish()))
            votes = SaveVotes(wanted, checkpointer.cannot_save())
            result = train_step(state, next(steps), config, world, votes)
            account.spend_step(result.data_wait_seconds, skipped=result.problem is not None)
            values = step_values(result, state, config, world)
            metrics.record({**values, **account.values()}, ledger_entry(result, state))
            if result.problem is not None:
                tell_of_skip(result, state, world)
                roll_back_if_diverged(result.problem, state, config, world, checkpointer)
            last = state.step == config.num_steps
            # Saved before validating: a validation that fails must not cost the run. Saving waits
            # for storage that fails, and after a skipped step for one that is made: a rollback
            # needs a checkpoint from before the steps that were skipped.
            save_is_due |= result.save_is_wanted
            if last or (save_is_due and can_save(result, state, interval, world)):
                save_is_due = False
                interval.saved(state.step, save(state, checkpointer, metrics, account))
                make_way_if_asked(state, config, world.wish(), checkpointer)
            if state.step % config.validate_every == 0 or last:
                validate(state, validation, metrics, account)
            if world.rank == 0:
                world.report(state.step, metrics.last)
    finally:
        checkpointer.wait()  # also after an error: this process may be ended at once
    metrics.flush()


def can_save(result: StepResult, state: TrainState, interval: SaveInterval, world: World) -> bool:
    """Say whether the state can be saved now; a step that was promised is not left out silently."""
    if result.problem is None and not result.save_must_wait:
        return True
    if world.rank == 0 and interval.is_promised(state.step):
        logger.warning(
            "step %d is not saved, though an evaluation or --save-at asks for it: %s. "
            "The next step that can be is.",
            state.step,
            result.problem or "the storage fails",
        )
    return False


def save(
    state: TrainState, checkpointer: Checkpointer, metrics: MetricsLogger, account: Account
) -> float:
    """Save in the background; gives the seconds for which training stood still."""
    checkpointer.save(state, before_commit=metrics.flush)
    stall = account.spend("checkpoint_stall")
    metrics.amend({"checkpoint/stall_seconds": stall, **account.values()})
    return stall


def validate(
    state: TrainState, validation: Validation, metrics: MetricsLogger, account: Account
) -> None:
    """Validate, and add what comes out to the newest step."""
    metrics.amend(measured(state, validation))
    seconds = account.spend("validation")
    metrics.amend({"validation/seconds": seconds, **account.values()})


def measured(state: TrainState, validation: Validation) -> dict[str, float | None]:
    """Give what a validation comes to, as JSON can hold it."""
    return {name: finite(value) for name, value in validation.measure(state.model).items()}


def make_way_if_asked(
    state: TrainState, config: LoopConfig, wish: Wish, checkpointer: Checkpointer
) -> None:
    """End this group, where it is asked to, once its step is saved; other ranks end with it."""
    if wish in (Wish.NONE, Wish.SAVE) or state.step == config.num_steps:
        return
    checkpointer.wait()
    error = RoomForMoreError if wish is Wish.GROW else AskedToStopError
    raise error(f"step {state.step} is saved")


def tell_of_skip(result: StepResult, state: TrainState, world: World) -> None:
    """Log a step that was skipped, with the place of its data."""
    if world.rank != 0:
        return
    logger.warning(
        "skipped step %d: %s (%d in a row, %d in the run). Its data: row %d of unit %d to row %d "
        "of unit %d",
        state.step,
        result.problem,
        state.guard.in_a_row,
        state.guard.skipped,
        result.first.row,
        result.first.position,
        state.cursor.row,
        state.cursor.position,
    )


def roll_back_if_diverged(
    problem: str, state: TrainState, config: LoopConfig, world: World, checkpointer: Checkpointer
) -> None:
    """End this start of the run if too many steps in a row were skipped."""
    if state.guard.in_a_row >= config.max_skipped_steps:
        raise roll_back(state, checkpointer, problem, world, config.max_rollbacks)


def validation_is_missing(
    key: str, step: int, config: LoopConfig, world: World, metrics: MetricsLogger
) -> bool:
    """Say whether the run was cut off after saving this step and before validating it.

    A collective: rank 0 alone has the logs, and all must validate or none.
    """
    due = step > 0 and (step % config.validate_every == 0 or step == config.num_steps)
    missing = due and metrics.restored_last.get(key) is None
    votes = torch.tensor(float(missing and world.rank == 0), device=world.device)
    return bool(all_reduce_sum(votes).item())


def step_values(
    result: StepResult, state: TrainState, config: LoopConfig, world: World
) -> dict[str, Any]:  # Any: JSON
    """Give what metrics.jsonl says of a step."""
    tokens_per_second = result.num_targets / result.seconds
    peak = config.peak_flops * world.world_size
    return {
        "step": state.step,
        "tokens": state.tokens,
        "train/loss": finite(result.loss),
        "train/grad_norm": finite(result.grad_norm),
        "train/skipped": state.guard.skipped,
        "train/lr_multiplier": config.schedule.lr_multiplier(state.step - 1),
        "train/tokens_per_second": tokens_per_second,
        "train/mfu": tokens_per_second * config.flops_per_token / peak,
        "train/peak_flops": config.peak_flops,
        "train/step_seconds": result.seconds,
        "train/data_wait_seconds": result.data_wait_seconds,
        **result.means,
        "data/position": state.cursor.position,
        "data/row": state.cursor.row,
        "time": time.time(),
    }


def ledger_entry(result: StepResult, state: TrainState) -> dict[str, Any]:  # Any: JSON
    """Give what ledger.jsonl says of a step: the same for any number of workers and block size."""
    left_out = result.left_out_from
    gap = {} if left_out is None else {"left_out_from": [left_out.position, left_out.row]}
    skipped = {} if result.problem is None else {"skipped": True}
    return {
        "step": state.step,
        "first": [result.first.position, result.first.row],
        "next": [state.cursor.position, state.cursor.row],
        "targets": result.num_targets,
        "rows": result.rows_hash,
        **gap,
        **skipped,
    }


def finite(value: float) -> float | None:
    """Give a number that JSON can hold; None for one that it cannot."""
    return value if math.isfinite(value) else None
