from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nanoray.data.plan import Cursor, DataPlan
from nanoray.model.scaling import gpt_config, num_parameters
from nanoray.train.optimizer import MuonAdamW, Stack
from nanoray.train.schedule import Schedule
from nanoray.train.step import StepConfig, train_step
from nanoray.train.traffic import step_traffic
from nanoray.train.world import LocalWorld, World
from tests.train.ranks import GroupWorld
from tests.train.tiny_run import (
    LAYOUT,
    OPTIMIZER,
    tiny_model,
    tiny_plan,
    tiny_state,
    tiny_steps,
)

COLLECTIVES = {
    "all_reduce": ("all_reduce",),
    "reduce_scatter": ("reduce_scatter_single", "reduce_scatter_tensor"),
    "all_gather": ("all_gather_single", "all_gather_into_tensor"),
}
"""Our name -> torch's names, of which each version has one or both."""

D34 = gpt_config(34, 65_536, head_dim=128, max_seq_len=2048)


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    return tiny_plan(tmp_path)


def bytes_of_a_step(world: World, plan: DataPlan) -> dict[str, list[int]]:
    """Make one step, and give the bytes of the largest tensor of each collective, in order."""
    state = tiny_state(world, num_layers=3)
    rows = tiny_steps(plan, Cursor(), world)
    first = next(rows)
    seen: dict[str, list[int]] = {kind: [] for kind in COLLECTIVES}

    def counted(kind: str, collective: Any) -> Any:  # Any: torch's collectives
        def call(*args: Any, **kwargs: Any) -> Any:
            seen[kind].append(max(arg.nbytes for arg in args if isinstance(arg, torch.Tensor)))
            return collective(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for kind, names in COLLECTIVES.items():
            for name in names:
                if hasattr(dist, name):
                    patch.setattr(dist, name, counted(kind, getattr(dist, name)))
        config = StepConfig(Schedule(num_steps=10), 2, lambda position: False)
        result = train_step(state, first, config, world)
    rows.close()
    assert result.problem is None
    return seen


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_real_step_hands_as_many_bytes_to_its_collectives_as_are_counted(ranks, plan, world_size):
    config = tiny_model(num_layers=3).config

    results = ranks.run(bytes_of_a_step, world_size, plan)

    expected = step_traffic(config, LAYOUT.rows_per_step, world_size)
    for seen in results:
        # A rank has 4 or 8 rows, in microbatches of 2: one exchange, however many there are.
        assert len(seen["reduce_scatter"]) == len(seen["all_gather"]) == 5
        assert sum(seen["reduce_scatter"]) == expected.stack_bytes
        assert sum(seen["all_gather"]) == expected.stack_bytes
        assert sum(seen["all_reduce"]) == expected.summed_bytes


@pytest.mark.parametrize("world_size", [1, 2, 5, 64])
@pytest.mark.parametrize("fields", [{}, {"num_kv_heads": 1}, {"embedding_dtype": "bfloat16"}])
def test_what_is_counted_is_what_the_optimizer_lays_out(world_size, fields):
    model = tiny_model(num_layers=3, **fields)

    traffic = step_traffic(model.config, 12, world_size)

    parameters = sum(parameter.nbytes for parameter in model.parameters())
    optimizer = MuonAdamW(model, OPTIMIZER, GroupWorld(0, world_size))
    assert traffic.gradient_bytes == parameters
    assert traffic.stack_bytes == sum(stack.grads.nbytes for stack in optimizer.stacks)
    assert traffic.stack_bytes == sum(stack.values.nbytes for stack in optimizer.stacks)


def held_bytes(stack: Stack) -> int:
    """Count what a rank of several holds of a stack."""
    tensors = [stack.values, stack.grads, stack.grad, *stack.state.values()]
    return sum(tensor.nbytes for tensor in tensors)


def test_padding_takes_the_memory_that_the_optimizer_holds_beyond_an_even_share():
    model, world_size = tiny_model(num_layers=3), 64
    V, D = model.config.vocab_size, model.config.model_dim
    parameters = num_parameters(model.config)

    traffic = step_traffic(model.config, 12, world_size)

    optimizer = MuonAdamW(model, OPTIMIZER, GroupWorld(0, world_size))
    averages = (parameters + 2 * V * D) / world_size
    even = 4 * (2 * parameters + parameters / world_size + averages)
    held = sum(map(held_bytes, optimizer.stacks))
    assert traffic.padding_memory_bytes == pytest.approx(held - even)


def test_d34_on_eight_nodes_sends_what_is_worked_out_by_hand():
    traffic = step_traffic(D34, 256, 64)

    # 64 ranks have 3 of 136 attention matrices each, and one of 34 of either shape of the MLP.
    D = 34 * 64
    padded = 2 * 65_536 * D + 192 * D * D + 64 * 4 * D * D + 64 * 4 * D * D
    assert traffic.gradient_bytes == 4 * 2_217_082_880
    assert traffic.stack_bytes == 4 * padded == 14_474_543_104
    assert traffic.reduce_scatter_bytes == 14_474_543_104 * 63 / 64
    assert traffic.summed_bytes == 32 + 4 + 256 * 32
    assert traffic.bytes_per_step == pytest.approx(2 * 63 / 64 * (14_474_543_104 + 8228))


def test_a_rank_alone_sends_nothing():
    traffic = step_traffic(D34, 256, LocalWorld.world_size)

    assert (traffic.bytes_per_step, traffic.padding_bytes) == (0, 0)
