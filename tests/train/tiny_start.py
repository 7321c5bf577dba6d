"""Starts of a tiny run: what driver and workers do, without a cluster, until a machine is lost."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanoray.data.batches import StepRows
from nanoray.data.plan import DataPlan
from nanoray.events import append_event
from nanoray.goodput import Account, open_account
from nanoray.metrics import MetricsLogger
from nanoray.storage import RunFolder, StageFolder
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import lock_out, newest_verified_step
from nanoray.train.loop import LoopConfig, train
from nanoray.train.rollback import leave_out
from nanoray.train.save_interval import SaveConfig
from nanoray.train.schedule import Schedule
from nanoray.train.validation import BitsPerByte
from nanoray.train.world import World
from tests.support import tiny_tokenizer
from tests.train.tiny_run import contents, tiny_state, tiny_steps


class MachineLostError(Exception):
    """What a test raises in the middle of a run."""


def never_empty(position: int) -> bool:
    return False


@dataclass(frozen=True)
class Start:
    """One start of a run: what a driver decides before the workers begin."""

    plan: DataPlan
    storage: str
    step: int
    attempt: int
    lost_after: int | None = None
    """Steps that this start makes before its machine is lost."""
    model: dict[str, Any] = field(default_factory=dict)
    """What differs from the tiny model."""
    lengths: Any = field(default_factory=lambda: tiny_tokenizer().token_lengths)
    config: LoopConfig = LoopConfig(
        schedule=Schedule(num_steps=8),
        device_batch_size=4,
        save=SaveConfig(every_steps=2),
        validate_every=2,
        flops_per_token=1e4,
        peak_flops=1e12,
        is_empty=never_empty,
        max_skipped_steps=3,
        max_rollbacks=2,
    )

    @property
    def folder(self) -> StageFolder:
        return stage_folder(self.storage)


def stage_folder(storage: str) -> StageFolder:
    return RunFolder(storage, "tiny").stage("pretrain")


def next_start(plan: DataPlan, storage: Path, **changes: Any) -> Start:
    """Number the attempt and pick the step to go on from, as the driver does."""
    folder = stage_folder(str(storage))
    attempt = folder.run.begin_attempt("pretrain")
    lock_out(folder)
    step = newest_verified_step(folder) or 0
    folder.run.record_start(attempt, step)
    append_event(folder, "begin", attempt=attempt, step=step)
    return Start(plan, str(storage), step, attempt, **changes)


def work(world: World, start: Start) -> dict[str, Any]:
    """Train as one worker of a start; gives this rank's weights and optimizer state at its end."""
    state = tiny_state(world, **start.model)
    checkpointer = Checkpointer(start.folder, world, attempt=start.attempt, facts={})
    if start.step:
        checkpointer.restore(state, start.step)
    leave_out(state, start.folder)
    account = open_account(start.folder, start.step) if world.rank == 0 else Account(time.time())
    metrics = MetricsLogger(start.folder if world.rank == 0 else None, last_step=start.step)
    validation = BitsPerByte(start.plan.validation_rows(6), start.lengths, world, 4)
    steps = tiny_steps(start.plan, state.cursor, world, start.step)
    try:
        train(
            state,
            cut_off(steps, start.lost_after),
            validation,
            start.config,
            world,
            checkpointer,
            metrics,
            account,
        )
    except MachineLostError:
        checkpointer.wait()  # what was under way may come through: each test says which step did
    finally:
        metrics.close()
        steps.close()
    return {name: tensor.float().cpu().numpy() for name, tensor in contents(state).items()}


def cut_off(steps: Iterator[StepRows], lost_after: int | None) -> Iterator[StepRows]:
    for number, step in enumerate(steps):
        if number == lost_after:
            raise MachineLostError
        yield step


def same_arrays(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )
