import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.data.blocks import check_order
from nanoray.data.plan import Cursor
from nanoray.model.memory import memory_per_gpu
from nanoray.model.stacks import padding_memory_bytes
from nanoray.ops.doctor_memory import estimate_bytes, expected_peak, halvings, random_rows, try_step
from nanoray.stages.pretrain import recipe_of
from nanoray.stages.pretrain_config import PretrainConfig, decide
from nanoray.stages.training_job import Recipe

ROOT = Path(__file__).parents[2]


def recipe(rows: int, *, depth: int = 1, max_seq_len: int = 64) -> Recipe:
    """Give the recipe of a run whose step is one forward pass."""
    config = PretrainConfig(
        depth=depth,
        vocab_size=400,
        max_seq_len=max_seq_len,
        total_batch_tokens=rows * max_seq_len,
        device_batch_size=rows,
        num_steps=1,
    )
    return recipe_of(decide(config, on_gpu=False, dtype="float32"))


@pytest.mark.parametrize(
    ("size", "smaller"), [(8, [4, 2, 1]), (12, [6, 3, 1]), (7, [1]), (1, []), (2, [1])]
)
def test_smaller_batches_divide_the_same_step(size: int, smaller: list[int]):
    assert halvings(size) == smaller
    assert all(size % batch == 0 for batch in smaller)


def test_the_rows_of_the_trial_follow_a_cursor():
    rows = random_rows(recipe(4), 4)

    assert check_order(rows.record.numpy(), Cursor(), lambda position: False) == Cursor(1)
    assert rows.rows.shape == (4, 65)
    assert int(rows.rows.max()) < 400


def test_more_rows_take_more_memory():
    assert estimate_bytes(recipe(64), 64) > 10 * estimate_bytes(recipe(2), 2)


def test_other_workers_take_over_a_part_of_the_optimizer():
    alone, even = 1e9, recipe(4, depth=8)

    assert expected_peak(alone, even, 4, 1) == alone
    # Of the 8-byte averages and such seven eighths go; an eighth of the summed gradients comes.
    assert expected_peak(alone, even, 4, 8) < alone


def test_a_step_of_several_workers_is_expected_to_hold_the_padding_of_the_stacks():
    shares = recipe(4, depth=8)
    parts = memory_per_gpu(shares.model, 4, 16)
    padding = padding_memory_bytes(shares.model, 16)

    assert parts.padding == padding > 0
    # 32 matrices of the attention divide by 16; 8 of either shape of the MLP, 512 wide, do not.
    assert padding == 4 * 2 * 8 * 4 * 512 * 512 * (2 + 2 / 16)
    assert expected_peak(1e9, shares, 4, 16) == pytest.approx(
        1e9 - memory_per_gpu(shares.model, 4, 1).total + parts.total
    )


def test_a_batch_that_cannot_fit_is_not_tried_and_a_smaller_one_is_named():
    huge = recipe(2**24, max_seq_len=512)

    facts = try_step(huge, eager=True, threads=1)

    assert not facts.fits
    assert not facts.was_tried
    assert facts.peak_bytes > facts.capacity_bytes
    assert 0 < facts.largest_fitting < 2**24


def run_python(script: str) -> str:
    """Run lines in a process of its own, as a step is tried; gives what they print."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_step_that_runs_out_of_its_bound_is_survived_and_reported():
    printed = run_python(
        "from nanoray.ops.doctor_memory import try_within\n"
        "from tests.ops.test_doctor_memory import recipe\n"
        "facts = try_within(recipe(512, max_seq_len=256), 60_000_000)\n"
        "print(facts.fits, facts.was_tried, 0 < facts.largest_fitting < 512)"
    )

    assert printed == "False True True"


def test_a_step_that_fits_tells_what_it_took():
    printed = run_python(
        "from nanoray.ops.doctor_memory import try_step\n"
        "from tests.ops.test_doctor_memory import recipe\n"
        "facts = try_step(recipe(64), eager=True, threads=1)\n"
        "print(facts.fits, facts.peak_bytes > 4 * 2**20, facts.seconds > 0)"
    )

    assert printed == "True True True"
