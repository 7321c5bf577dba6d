"""One step: forward and backward over the rank's microbatches, then one update for all, or none."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanoray.data.batches import Batch, StepRows
from nanoray.data.blocks import check_order, ledger_hash
from nanoray.data.plan import Cursor
from nanoray.model.gpt import GPT
from nanoray.text.chat import IGNORE_INDEX
from nanoray.train.guard import poison
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.world import World, all_reduce_sum


@dataclass(frozen=True)
class StepConfig:
    """What a step needs to know, every value decided."""

    schedule: Schedule
    device_batch_size: int
    """Rows per forward pass of one rank."""
    is_empty: Callable[[int], bool]
    """Says whether the unit at a position gives no row."""
    text_start: int | None = field(default=None, kw_only=True)
    """The id at which a text begins that sees nothing of the row before it; None: rows are seen
    whole."""
    most_importance: float = field(default=2.0, kw_only=True)
    """Bound on the factor that corrects for targets drawn by older weights."""


@dataclass(frozen=True)
class SaveVotes:
    """What a rank says of saving the state after a step."""

    wants: bool = False
    cannot: bool = False
    """Its storage fails at the moment, or hangs."""


NO_VOTES = SaveVotes()


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank but for the times."""

    loss: float
    """Mean over all targets of the global batch, in nats."""
    grad_norm: float
    """Of the mean gradient, before clipping."""
    problem: str | None
    """Why the step was skipped; None if it was made."""
    num_targets: int
    first: Cursor
    """Where the step's rows begin in the data plan."""
    left_out_from: Cursor | None
    """Where the data begin that a rollback left out just before them."""
    save_is_wanted: bool
    """By any rank."""
    save_must_wait: bool
    """The storage of any rank fails at the moment."""
    rows_hash: str
    """Over the rows in their global order."""
    data_wait_seconds: float
    seconds: float
    means: dict[str, float]
    """Of what the rows tell of themselves, over all ranks."""


def train_step(
    state: TrainState,
    rows: StepRows,
    config: StepConfig,
    world: World,
    votes: SaveVotes = NO_VOTES,
) -> StepResult:
    """Make one update from this rank's rows and those of all others, unless the guard skips it.

    The loss is a sum until the very end, and divided by the targets of all ranks: neither the size
    of a microbatch nor the number of ranks can weight a token.

    A skipped step leaves weights and averages as they are. Its data are used up, and it counts as a
    step, so that schedules and the length of the run do not depend on it.

    With `votes` this rank says whether the state should be saved after the step; all hear of it.

    Raises:
        DataOrderError: the rows are not those that follow the cursor.
    """
    began = time.perf_counter()
    totals = compute_gradients(state, rows, config, world, votes)
    record = all_reduce_sum(rows.record.to(world.device))

    norm = state.optimizer.reduce(totals[1].float())

    # The device is waited for once in a step: here, because the host has to know the norm before it
    # starts an update. While the device makes that update, the host is already at the next step.
    # Nothing is changed before the order of the rows is proven.
    order = record.cpu().numpy()
    first, state.cursor = state.cursor, check_order(order, state.cursor, config.is_empty)
    loss_sum, num_targets, want, cannot = totals.tolist()
    mean_loss, grad_norm = loss_sum / num_targets, norm.item()
    problem = state.guard.judge(mean_loss, grad_norm)
    if problem is None:
        state.tokens += int(num_targets)
        # A gradient of exactly zero, as of answers that are all right or all wrong, says nothing;
        # Muon would go on along its momentum at full length.
        if grad_norm > 0:
            update(state, norm, totals[1].float(), config.schedule)
    state.step += 1
    world.beat(f"step {state.step}", is_step=True)
    left_out_from, state.left_out_from = state.left_out_from, None
    return StepResult(
        loss=mean_loss,
        grad_norm=grad_norm,
        problem=problem,
        num_targets=int(num_targets),
        first=first,
        left_out_from=left_out_from,
        save_is_wanted=want > 0,
        save_must_wait=cannot > 0,
        rows_hash=ledger_hash(order),
        data_wait_seconds=rows.wait_seconds,
        seconds=time.perf_counter() - began + rows.wait_seconds,
        means=means_over_ranks(rows, world),
    )


def update(state: TrainState, norm: Tensor, num_targets: Tensor, schedule: Schedule) -> None:
    """Change the weights by the gradient, whose norm is known."""
    state.optimizer.update(
        state.updates,
        norm=norm,
        num_targets=num_targets,
        lr_multiplier=schedule.lr_multiplier(state.step),
        momentum=schedule.momentum(state.step),
    )
    state.updates += 1


def means_over_ranks(rows: StepRows, world: World) -> dict[str, float]:
    """Give the means of what the rows tell of themselves; a collective where they tell anything."""
    if not rows.means:
        return {}
    sums = torch.tensor(list(rows.means.values()), dtype=torch.float64, device=world.device)
    totals = all_reduce_sum(sums).tolist()
    return {
        name: total / count if count else 0.0
        for name, (total, count) in zip(rows.means, totals, strict=True)
    }


def importance(model: GPT, batch: Batch, most: float) -> Tensor:
    """Give p / p_old of each target, (B, T) fp32, bounded: truncated importance sampling.

    It is a constant for the gradient, which then is that of the policy that is trained, up to what
    the bound takes away (Ionides 2008; IMPALA, arXiv:1802.01561).
    """
    assert batch.old_logprobs is not None, "asked for where there are some"
    logprobs = -model.token_losses(batch.inputs, batch.targets, texts=batch.texts)
    return (logprobs - batch.old_logprobs).exp().clamp(max=most)


def compute_gradients(
    state: TrainState,
    rows: StepRows,
    config: StepConfig,
    world: World,
    votes: SaveVotes,
) -> Tensor:
    """Go forward and backward over this rank's rows; gives sums over all ranks, (4,) float64.

    They are loss, targets, how many ranks want the state to be saved after the step, and how many
    cannot save it. The votes go along because a collective of their own would be waited for.
    """
    state.optimizer.zero_grad()
    totals = torch.zeros(4, dtype=torch.float64, device=world.device)
    totals[2], totals[3] = float(votes.wants), float(votes.cannot)
    factor = poison(state.cursor)
    for batch in rows.microbatches(config.device_batch_size, world.device, config.text_start):
        totals[1] += (batch.targets != IGNORE_INDEX).sum()
        if not batch.teaches:
            continue
        factors = batch.factors
        if factors is not None and batch.old_logprobs is not None:
            factors = factors * importance(state.model, batch, config.most_importance)
        loss = state.model.loss_sum(batch.inputs, batch.targets, texts=batch.texts, factors=factors)
        (loss if factor == 1.0 else loss * factor).backward()
        totals[0] += loss.detach()
    return all_reduce_sum(totals)
