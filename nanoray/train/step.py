"""One step: forward and backward over the rank's microbatches, then one update for all."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nanoray.data.batches import StepRows
from nanoray.data.blocks import check_order, ledger_hash
from nanoray.data.plan import Cursor
from nanoray.text.chat import IGNORE_INDEX
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.world import World, all_reduce_sum


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank but for the times."""

    loss: float
    """Mean over all targets of the global batch, in nats."""
    grad_norm: float
    """Of the mean gradient, before clipping."""
    num_targets: int
    first: Cursor
    """Where the step's rows begin in the data plan."""
    rows_hash: str
    """Over the rows in their global order."""
    data_wait_seconds: float
    seconds: float


def train_step(
    state: TrainState,
    rows: StepRows,
    schedule: Schedule,
    world: World,
    *,
    device_batch_size: int,
    is_empty: Callable[[int], bool],
) -> StepResult:
    """Make one update from this rank's rows and those of all others.

    The loss is a sum until the very end, and divided by the targets of all ranks: neither the size
    of a microbatch nor the number of ranks can weight a token.

    Raises:
        DataOrderError: the rows are not those that follow the cursor.
    """
    began = time.perf_counter()
    state.optimizer.zero_grad()
    totals = torch.zeros(2, dtype=torch.float64, device=world.device)  # loss, targets
    for batch in rows.microbatches(device_batch_size, world.device):
        loss = state.model.loss_sum(batch.inputs, batch.targets)
        loss.backward()
        totals[0] += loss.detach()
        totals[1] += (batch.targets != IGNORE_INDEX).sum()
    all_reduce_sum(totals)
    record = all_reduce_sum(rows.record.to(world.device))

    norm = state.optimizer.step(
        state.step,
        num_targets=totals[1].float(),
        lr_multiplier=schedule.lr_multiplier(state.step),
        momentum=schedule.momentum(state.step),
    )
    # The GPU is waited for here, after the update is under way. Nothing is saved before the order
    # of the rows is proven.
    order = record.cpu().numpy()
    first, state.cursor = state.cursor, check_order(order, state.cursor, is_empty)
    loss_sum, num_targets = totals.tolist()
    state.step += 1
    state.tokens += int(num_targets)
    return StepResult(
        loss=loss_sum / num_targets,
        grad_norm=norm.item(),
        num_targets=int(num_targets),
        first=first,
        rows_hash=ledger_hash(order),
        data_wait_seconds=rows.wait_seconds,
        seconds=time.perf_counter() - began + rows.wait_seconds,
    )
