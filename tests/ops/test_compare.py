"""What an idea is worth."""

import dataclasses
import math

import numpy as np
import pytest

from nanoray.config import InputError
from nanoray.ops.compare import compare, log_flops_at, told
from nanoray.ops.trial_table import Status, TrialRow
from tests.ops.test_trial_table import row


def sweep(worth: float, *, depths=(4, 6), ratios=(5, 10, 20, 40), seeds=(1,), noise=0.0, draw=0):
    """Give trials whose loss is a power law of the compute, `worth` times as much of it."""
    rng = np.random.default_rng(draw)
    return [
        row(
            name=f"d{depth}-r{ratio}-s{seed}",
            depth=depth,
            seed=seed,
            tokens_per_param=float(ratio),
            flops=1e15 * depth**4 * ratio,
            bits_per_byte=0.5
            + (1e15 * depth**4 * ratio * worth / 1e16) ** -0.1 * math.exp(rng.normal(0, noise)),
        )
        for depth in depths
        for ratio in ratios
        for seed in seeds
    ]


@pytest.mark.parametrize("worth", [0.5, 1.0, 1.2, 2.0])
def test_a_known_multiplier_is_found(worth: float) -> None:
    found = compare(sweep(1.0), sweep(worth))

    assert len(found.multipliers) == 2
    assert found.mean == pytest.approx(worth, rel=0.01)


def test_with_one_length_the_curve_runs_over_depths() -> None:
    found = compare(
        sweep(1.0, depths=(4, 6, 8), ratios=(10,)), sweep(1.3, depths=(4, 6, 8), ratios=(10,))
    )

    assert [one.place for one in found.multipliers] == ["10 tokens per parameter, seed 1"]
    assert found.mean == pytest.approx(1.3, rel=0.02)
    assert found.interval is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """95 of 100 times, give or take 3 standard deviations of such a count."""
    held = 0
    for draw in range(100):
        one = sweep(1.0, seeds=(1, 2, 3), noise=0.003, draw=2 * draw)
        other = sweep(1.2, seeds=(1, 2, 3), noise=0.003, draw=2 * draw + 1)
        interval = compare(one, other).interval
        assert interval is not None
        held += interval[0] <= 1.2 <= interval[1]

    assert held >= 88


def test_what_is_surely_better_is_called_so() -> None:
    one, other = sweep(1.0, noise=0.002, draw=1), sweep(2.0, noise=0.002, draw=2)

    assert "b is better" in told(("a", "b"), compare(one, other))
    assert "b is better" in told(("b", "a"), compare(other, one))


def test_a_sweep_against_itself_cannot_be_told_apart() -> None:
    found = compare(sweep(1.0, noise=0.01), sweep(1.0, noise=0.01))

    assert found.mean == 1.0
    assert "cannot be told apart" in told(("a", "b"), found)


def test_trials_without_a_result_or_a_partner_are_named() -> None:
    failed = row(name="d4-r80-s1", depth=4, seed=1, status=Status.FAILED)

    found = compare([*sweep(1.0), failed], sweep(1.2, depths=(4,)))

    assert found.left_out == ["d4-r80-s1 (failed)", "depth 6, seed 1"]
    assert "left out: d4-r80-s1 (failed)" in told(("a", "b"), found)


def test_a_line_that_was_drawn_out_is_said() -> None:
    found = compare(sweep(1.0, ratios=(5, 10)), sweep(9.0, ratios=(5, 10)))

    assert all(one.is_extrapolated for one in found.multipliers)
    assert "(line drawn out)" in told(("a", "b"), found)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        compare(sweep(1.0, depths=(4,)), sweep(1.0, depths=(6,)))


def test_a_level_is_read_off_over_the_logarithm_of_compute() -> None:
    inside = log_flops_at([(1.0, 3.0), (math.e**2, 1.0)], 2.0)
    before = log_flops_at([(1.0, 3.0), (math.e**2, 1.0)], 4.0)

    assert (round(inside[0], 9), inside[1]) == (1.0, False)
    assert (round(before[0], 9), before[1]) == (-1.0, True)


def test_a_curve_that_rises_is_read_at_its_first_crossing() -> None:
    logs, _ = log_flops_at([(1.0, 3.0), (math.e, 2.0), (math.e**2, 2.5), (math.e**3, 1.0)], 2.0)

    assert logs == pytest.approx(1.0)


def test_losses_too_far_apart_are_left_out_or_refused() -> None:
    def rows(depth: int, *points: tuple[float, float]) -> list[TrialRow]:
        one = sweep(1.0, depths=(depth,), ratios=(5,))[0]
        return [dataclasses.replace(one, flops=f, bits_per_byte=bits) for f, bits in points]

    better, worse = ((1e15, 2.5), (2e15, 2.4999)), ((1e15, 3.0), (2e15, 2.8))
    with pytest.raises(InputError, match="so far apart"):
        compare(rows(4, *better), rows(4, *worse))

    found = compare([*rows(4, *better), *rows(6, *worse)], [*rows(4, *worse), *rows(6, *worse)])

    assert [one.value for one in found.multipliers] == [1.0]
    assert found.left_out == ["depth 4, seed 1 (losses too far apart)"]
