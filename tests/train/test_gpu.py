"""What only a GPU can show: its number format, its compiler, its collectives, its determinism."""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from nanoray.data.plan import Cursor, DataPlan
from nanoray.model.scaling import gpu_peak_flops
from nanoray.train.device import can_compile, peak_flops, training_dtype
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.step import StepConfig, StepResult, train_step
from nanoray.train.world import LocalWorld, all_gather, all_reduce_sum, reduce_scatter_sum
from tests.train.ranks import process_context
from tests.train.tiny_run import T, contents, tiny_model, tiny_plan, tiny_state, tiny_steps
from tests.train.tiny_start import Start, next_start, same_arrays, work

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
]

GPU = torch.device("cuda", 0)
SHAPE = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 64}
"""Heads of a size that every kernel knows."""
IN_BF16 = {**SHAPE, "compute_dtype": torch.bfloat16}
NUM_STEPS = 4
STEP = StepConfig(Schedule(num_steps=NUM_STEPS), 4, lambda position: False)


@pytest.fixture(autouse=True)
def tensor_cores() -> Iterator[None]:
    """Multiply fp32 matrices as a run does; without this, the compiler warns."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    return tiny_plan(tmp_path / "texts")


def on_gpu(work: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a fresh process, where no GPU library has read its settings yet."""
    with ProcessPoolExecutor(1, mp_context=process_context()) as process:
        return process.submit(work, *args).result()


def make_steps(state: TrainState, plan: DataPlan, world: LocalWorld) -> list[StepResult]:
    rows = tiny_steps(plan, Cursor(), world)
    results = [train_step(state, next(rows), STEP, world) for _ in range(NUM_STEPS)]
    rows.close()
    return results


def test_bf16_gives_the_loss_of_fp32_but_for_its_rounding(plan):
    rows = torch.from_numpy(plan.validation_rows(8)).long().to(GPU)
    in_fp32, in_bf16 = tiny_model(**SHAPE).to(GPU), tiny_model(**IN_BF16).to(GPU)

    expected = in_fp32.token_losses(rows[:, :-1], rows[:, 1:])
    losses = in_bf16.token_losses(rows[:, :-1], rows[:, 1:])

    # bf16 keeps 8 bits: 0.4 % of rounding in each logit of up to about 5; over 192 tokens it
    # averages out to well under that.
    assert losses.mean().item() == pytest.approx(expected.mean().item(), rel=5e-3)
    assert (losses - expected).abs().max() < 0.3


def test_the_gpu_gives_the_losses_of_the_cpu(plan):
    rows = torch.from_numpy(plan.validation_rows(8)).long()
    torch.set_float32_matmul_precision("highest")

    expected = tiny_model(**SHAPE).token_losses(rows[:, :-1], rows[:, 1:])
    losses = tiny_model(**SHAPE).to(GPU).token_losses(rows[:, :-1].to(GPU), rows[:, 1:].to(GPU))

    # fp32 sums of up to 128 products in another order, through two layers.
    torch.testing.assert_close(losses.cpu(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("default")  # what the compiler has to say is about speed
def test_compiled_training_equals_eager_training_but_for_rounding(plan):
    world = LocalWorld(GPU)
    eager, compiled = (tiny_state(world, **IN_BF16) for _ in range(2))
    compiled.model.compile()
    compiled.optimizer.compile()

    expected = make_steps(eager, plan, world)
    results = make_steps(compiled, plan, world)

    assert [result.rows_hash for result in results] == [result.rows_hash for result in expected]
    for result, wanted in zip(results, expected, strict=True):
        # Fused kernels keep fp32 where eager ones round to bf16 in between (0.4 % at a time).
        assert result.loss == pytest.approx(wanted.loss, rel=1e-2)
        assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=5e-2)
    assert results[-1].loss < results[0].loss


def train_in_group(plan: DataPlan, grouped: bool) -> tuple[list[float], dict[str, Any], bool]:
    """Train on one GPU, with a process group of this one rank or without any."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        if grouped:
            dist.init_process_group(
                "nccl",
                init_method=f"file://{folder}/group",
                rank=0,
                world_size=1,
                device_id=GPU,
            )
        world = LocalWorld(GPU)
        state = tiny_state(world, **IN_BF16)
        losses = [result.loss for result in make_steps(state, plan, world)]
        collectives_agree = not grouped or nccl_keeps_what_one_rank_has()
        if grouped:
            dist.destroy_process_group()
    weights = {name: tensor.cpu().numpy() for name, tensor in contents(state).items()}
    return losses, weights, collectives_agree


def nccl_keeps_what_one_rank_has() -> bool:
    values = torch.arange(12.0, device=GPU).view(4, 3)
    part, gathered = torch.zeros_like(values), values.clone()
    reduce_scatter_sum(part, values).wait()
    all_gather(gathered, gathered[:]).wait()
    total = all_reduce_sum(values.clone())
    return all(torch.equal(result, values) for result in (part, gathered, total))


def test_one_rank_with_nccl_trains_as_one_without(plan):
    losses, weights, _ = on_gpu(train_in_group, plan, False)

    with_nccl, weights_with_nccl, collectives_agree = on_gpu(train_in_group, plan, True)

    assert collectives_agree
    assert with_nccl == losses
    assert same_arrays(weights_with_nccl, weights)


def work_repeatably(start: Start) -> dict[str, Any]:
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    return work(LocalWorld(GPU), start)


def test_a_resumed_run_equals_the_undisturbed_one_bit_for_bit(plan, tmp_path):
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    expected = on_gpu(work_repeatably, next_start(plan, calm, model=IN_BF16))

    on_gpu(work_repeatably, next_start(plan, disturbed, model=IN_BF16, lost_after=5))
    again = next_start(plan, disturbed, model=IN_BF16)
    result = on_gpu(work_repeatably, again)

    assert again.step == 4
    assert same_arrays(result, expected)
    ledgers = [run / "tiny" / "pretrain" / "ledger.jsonl" for run in (calm, disturbed)]
    assert ledgers[0].read_bytes() == ledgers[1].read_bytes()


def test_rows_are_pinned_on_the_way_to_the_gpu_and_arrive_unchanged(plan):
    steps = tiny_steps(plan, Cursor(), LocalWorld(GPU))
    step = next(steps)
    steps.close()

    batches = list(step.microbatches(5, GPU))

    assert step.rows.is_pinned()
    inputs = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert inputs.device == GPU
    assert inputs.shape == (12, T)
    assert np.array_equal(inputs.cpu().numpy(), step.rows[:, :-1].numpy())
    assert np.array_equal(targets.cpu().numpy(), step.rows[:, 1:].numpy())


def test_a_gpu_trains_in_the_format_it_has_and_its_peak_is_known_or_measured():
    name = torch.cuda.get_device_name(GPU)

    peak, measured = peak_flops(GPU, torch.bfloat16), peak_flops(GPU, torch.float32)

    assert can_compile(GPU)
    assert (training_dtype(GPU) == torch.bfloat16) == torch.cuda.is_bf16_supported()
    assert peak == gpu_peak_flops(name) or gpu_peak_flops(name) is None
    assert 1e11 < measured < 1e16
