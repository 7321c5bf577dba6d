import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanoray.data.blocks import DataOrderError, ledger_hash
from nanoray.data.plan import Cursor, DataPlan
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.step import StepConfig, StepResult, train_step
from nanoray.train.world import LocalWorld, World
from tests.train.tiny_run import LAYOUT, T, contents, tiny_plan, tiny_state, tiny_steps

SCHEDULE = Schedule(num_steps=10)
NUM_STEPS = 3


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    return tiny_plan(tmp_path)


def never_empty(position: int) -> bool:
    return False


def step_config(device_batch_size: int) -> StepConfig:
    return StepConfig(SCHEDULE, device_batch_size, never_empty)


def make_steps(
    state: TrainState, plan: DataPlan, world: World, device_batch_size: int
) -> list[StepResult]:
    rows = tiny_steps(plan, state.cursor, world)
    results = [
        train_step(state, next(rows), step_config(device_batch_size), world)
        for _ in range(NUM_STEPS)
    ]
    rows.close()
    return results


def steps_of_rank(world: World, plan: DataPlan) -> tuple[list[StepResult], dict[str, Any]]:
    state = tiny_state(world)
    results = make_steps(state, plan, world, device_batch_size=3)
    return results, {name: p.detach().numpy() for name, p in state.model.named_parameters()}


def test_loss_and_norm_are_those_of_one_mean_over_the_whole_batch(plan):
    state = tiny_state()
    reference = copy.deepcopy(state.model)
    steps = tiny_steps(plan, Cursor(), LocalWorld())
    rows = next(steps)
    steps.close()

    result = train_step(state, rows, step_config(5), LocalWorld())

    reference.requires_grad_()
    reference.zero_grad()
    ids = rows.rows.long()
    loss = F.cross_entropy(reference(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_norm=1e9)
    # fp32 sums in another order.
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("device_batch_size", [1, 5, 12, 100])
def test_microbatches_of_any_size_make_the_same_update(plan, device_batch_size):
    together, in_parts = tiny_state(), tiny_state()

    expected = make_steps(together, plan, LocalWorld(), LAYOUT.rows_per_step)
    results = make_steps(in_parts, plan, LocalWorld(), device_batch_size)

    for result, wanted in zip(results, expected, strict=True):
        assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
        assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
        assert result.rows_hash == wanted.rows_hash
    for name, value in in_parts.model.named_parameters():
        wanted_value = dict(together.model.named_parameters())[name]
        # Sums of fp32 gradients in another order (1e-7), which AdamW's first steps, being the
        # sign of the gradient where it is tiny, may turn into a good part of the rate.
        error = (value - wanted_value).norm() / wanted_value.norm()
        assert error < 1e-4, name


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_make_the_same_update_as_one_process(ranks, plan, world_size):
    expected, weights = steps_of_rank(LocalWorld(), plan)

    everyone = ranks.run(steps_of_rank, world_size, plan)

    for results, values in everyone:
        for result, wanted in zip(results, expected, strict=True):
            assert result.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
            assert result.num_targets == wanted.num_targets
            assert (result.first, result.rows_hash) == (wanted.first, wanted.rows_hash)
        for name, value in values.items():
            assert np.array_equal(value, everyone[0][1][name]), "ranks differ"
            # As above: the order of fp32 sums, enlarged by AdamW's first steps.
            error = np.linalg.norm(value - weights[name]) / np.linalg.norm(weights[name])
            assert error < 1e-4, name


def test_a_step_moves_the_state_on(plan):
    state = tiny_state()
    before = contents(state)

    results = make_steps(state, plan, LocalWorld(), 4)

    assert state.step == NUM_STEPS
    assert state.tokens == NUM_STEPS * LAYOUT.rows_per_step * T
    assert [result.num_targets for result in results] == [LAYOUT.rows_per_step * T] * NUM_STEPS
    assert results[0].first == Cursor()
    assert all(not torch.equal(value, before[name]) for name, value in contents(state).items())


def test_steps_tell_which_rows_they_were_made_of(plan):
    results = make_steps(tiny_state(), plan, LocalWorld(), 4)

    steps = tiny_steps(plan, Cursor(), LocalWorld())
    records = [next(steps).record.numpy() for _ in range(NUM_STEPS)]
    steps.close()
    assert [result.rows_hash for result in results] == [ledger_hash(record) for record in records]
    firsts = [Cursor(*record[0, :2].tolist()) for record in records]
    assert [result.first for result in results] == firsts


def test_the_loss_falls_on_rows_that_are_seen_again(plan):
    state = tiny_state()

    first = make_steps(state, plan, LocalWorld(), 4)
    for _ in range(5):
        state.cursor = Cursor()
        last = make_steps(state, plan, LocalWorld(), 4)

    assert last[0].loss < 0.8 * first[0].loss


def test_rows_that_do_not_follow_the_cursor_are_refused_and_not_counted(plan):
    state = tiny_state()
    rows = tiny_steps(plan, Cursor(1), LocalWorld())

    with pytest.raises(DataOrderError, match="row 0 of unit 0 was due"):
        train_step(state, next(rows), step_config(4), LocalWorld())

    rows.close()
    assert (state.step, state.tokens, state.cursor) == (0, 0, Cursor())
