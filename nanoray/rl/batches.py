"""Trajectories in, rows of a training step out: tokens, advantages, and what is told of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoray.data.batches import StepRows, padded_length
from nanoray.data.blocks import RECORD_FIELDS, row_digest
from nanoray.inference.sequence import FinishReason
from nanoray.rl.trajectory import Trajectory, advantages

Group = Sequence[Trajectory]


def rows_of_groups(
    groups: Mapping[int, Group],
    *,
    groups_per_step: int,
    first_position: int,
    padding_id: int,
    version: int,
) -> StepRows:
    """Give this rank's rows of one step.

    A token that the model drew is a target, one that stood in the prompt or that a tool put in is
    not. Each target's loss is multiplied by the advantage of its answer: with the sum of losses
    divided by all targets of the step, that is REINFORCE with the mean of the group as baseline.

    Args:
        groups: this rank's, by their number in the step.
        groups_per_step: of all ranks.
        first_position: of the step's first question in the endless order of questions.
        padding_id: what rows are filled up with.
        version: of the weights that learn; older trajectories keep their log-probabilities.
    """
    num_samples = len(next(iter(groups.values())))
    record = torch.zeros(groups_per_step * num_samples, RECORD_FIELDS, dtype=torch.int64)
    flat = [trajectory for group in groups.values() for trajectory in group]
    T = padded_length(max(len(trajectory.tokens) for trajectory in flat) - 1)
    rows = np.full((len(flat), T + 1), ~padding_id, np.int32)
    factors = np.zeros((len(flat), T), np.float32)
    old_logprobs = np.zeros((len(flat), T), np.float32)
    index = 0
    for number, group in groups.items():
        gains = advantages([trajectory.reward for trajectory in group])
        for sample, (trajectory, gain) in enumerate(zip(group, gains, strict=True)):
            signed = signed_tokens(trajectory)
            rows[index, : len(signed)] = signed
            factors[index] = gain
            old_logprobs[index, : len(signed) - 1] = trajectory.logprobs[1:]
            place = [first_position + number, sample, num_samples, row_digest(signed)]
            record[number * num_samples + sample] = torch.tensor(place)
            index += 1
    is_stale = any(trajectory.policy_version != version for trajectory in flat)
    return StepRows(
        rows=torch.from_numpy(rows),
        record=record,
        wait_seconds=0.0,
        factors=torch.from_numpy(factors),
        old_logprobs=torch.from_numpy(old_logprobs) if is_stale else None,
        means=means_of(list(groups.values()), version),
    )


def in_batches(rows: StepRows, device_batch_size: int) -> StepRows:
    """Put rows into an order, and add some without a target, so that passes have little to do.

    Each pass has as many rows. Those of one length are together, and those of groups whose rewards
    are equal, which teach nothing, are at the end.
    """
    assert rows.factors is not None, "rollouts have some"
    missing = -len(rows.rows) % device_batch_size
    columns = torch.arange(1, rows.rows.size(1))
    lengths = ((rows.rows[:, 1:] >= 0) * columns).amax(1)
    is_idle = ~rows.factors.any(1)
    order = torch.argsort(lengths + is_idle * rows.rows.size(1), stable=True)

    def arranged(values: Tensor, padding: int) -> Tensor:
        return F.pad(values[order], (0, 0, 0, missing), value=padding)

    return replace(
        rows,
        rows=arranged(rows.rows, -1),
        factors=arranged(rows.factors, 0),
        old_logprobs=None if rows.old_logprobs is None else arranged(rows.old_logprobs, 0),
    )


def signed_tokens(trajectory: Trajectory) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Give the tokens, those that are not to be learned as `~id`."""
    tokens = np.array(trajectory.tokens, np.int32)
    return np.where(np.array(trajectory.loss_mask, bool), tokens, ~tokens)


def means_of(groups: Sequence[Group], version: int) -> dict[str, tuple[float, float]]:
    """Give sum and count of what is told of a step's rollouts."""
    flat = [trajectory for group in groups for trajectory in group]
    answers, questions = float(len(flat)), float(len(groups))
    mixed = sum(len({trajectory.reward for trajectory in group}) > 1 for group in groups)
    finished = sum(trajectory.finish_reason is FinishReason.STOP for trajectory in flat)
    return {
        "rl/reward": (math.fsum(trajectory.reward for trajectory in flat), answers),
        "rl/answer_tokens": (sum(trajectory.num_drawn for trajectory in flat), answers),
        "rl/finished_share": (finished, answers),
        "rl/teaching_share": (mixed, questions),
        "rl/staleness_steps": (sum(version - t.policy_version for t in flat), answers),
    }
