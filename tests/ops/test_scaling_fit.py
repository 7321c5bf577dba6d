"""Both methods side by side, and the back-test."""

import numpy as np
import pytest

from nanoray.ops.scaling_fit import (
    ISOFLOP,
    LAW,
    Agreement,
    BackTest,
    agreement,
    back_test,
    fit_all,
    largest,
    why_no_law,
)
from nanoray.ops.scaling_law import Estimate, Points
from tests.ops.synthetic_sweep import CHINCHILLA, best_size_of, equal_flops, equal_ratios, six

BUDGETS, SIZES = np.geomspace(1e18, 1e19, 4), np.geomspace(7e7, 4.35e8, 6)
RATIO_SIZES, RATIOS = np.array([7e7, 1.35e8, 2.4e8, 4e8]), np.array([5.0, 10, 20, 40])


def test_both_methods_agree_on_a_sweep_that_follows_the_law() -> None:
    fits = fit_all(equal_flops(CHINCHILLA, BUDGETS, SIZES, noise=0.001), six, draws=200)

    same = agreement(fits, 0.9)

    assert same is not None
    assert same.agrees
    assert same.budget == pytest.approx(1e19)
    assert same.ratio.value == pytest.approx(same.by_isoflops.value / same.by_law.value)
    assert same.by_law.value == pytest.approx(best_size_of(CHINCHILLA, BUDGETS)[-1], rel=0.2)


def test_methods_agree_where_their_intervals_meet() -> None:
    low, high, ratio = Estimate(2, 1, 3), Estimate(6, 4, 8), Estimate(3, 2, 5)

    assert not Agreement(1e18, low, high, ratio).agrees
    assert Agreement(1e18, low, Estimate(6, 3, 8), ratio).agrees


def test_a_sweep_without_a_common_budget_has_a_law_all_the_same() -> None:
    points = equal_ratios(CHINCHILLA, np.array([1e8, 4e8, 2e9]), RATIOS)

    fits = fit_all(points, six, draws=10)

    assert fits.law is not None
    assert list(fits.impossible) == [ISOFLOP]
    assert agreement(fits, 0.9) is None


@pytest.mark.parametrize(
    ("sizes", "ratios", "sentence"),
    [
        ([1e8], [5.0, 10, 20, 40], "needs 3 depths, and the sweep has 1. Add depths."),
        ([1e8, 2e8], [5.0, 10, 20, 40], "needs 3 depths, and the sweep has 2. Add depths."),
        ([1e8, 2e8, 3e8], [20.0], "needs 6 trials for its 5 constants, not 3"),
        (list(np.geomspace(1e8, 1e9, 7)), [20.0], "the tokens follow from the size"),
    ],
)
def test_why_there_is_no_law_is_said(
    sizes: list[float], ratios: list[float], sentence: str
) -> None:
    points = equal_ratios(CHINCHILLA, np.array(sizes), np.array(ratios))

    fits = fit_all(points, six, draws=10)

    assert fits.law is None
    assert sentence in fits.impossible[LAW]


def test_one_budget_alone_has_no_law() -> None:
    points = equal_flops(CHINCHILLA, np.array([1e18]), np.geomspace(7e7, 1e9, 8))

    assert "the tokens follow from the size" in str(why_no_law(points))


def test_the_back_test_leaves_out_the_largest_budget_and_predicts_it() -> None:
    points = equal_flops(CHINCHILLA, BUDGETS, SIZES, noise=0.002, seed=1)

    test = back_test(points, has_size=True, interval=0.9)

    assert isinstance(test, BackTest)
    assert list(test.measured) == list(points.loss[-6:])
    assert test.factor == pytest.approx(10 ** (1 / 3))
    assert test.num_inside >= 4
    assert test.worst < 0.01


def test_the_back_test_does_not_see_what_it_predicts() -> None:
    points = equal_flops(CHINCHILLA, BUDGETS, SIZES, noise=0.002, seed=1)
    spoilt = points.loss.copy()
    spoilt[-6:] *= 1.2

    first, second = (
        back_test(
            Points(points.size, points.tokens, points.flops, loss), has_size=True, interval=0.9
        )
        for loss in (points.loss, spoilt)
    )

    assert isinstance(first, BackTest)
    assert isinstance(second, BackTest)
    assert first.predicted == second.predicted
    assert second.num_inside == 0


def test_by_ratio_the_largest_size_is_left_out_and_of_one_size_the_longest_run() -> None:
    by_ratio = equal_ratios(CHINCHILLA, RATIO_SIZES, RATIOS)
    alone = equal_ratios(CHINCHILLA, np.array([1e8]), RATIOS)

    assert set(by_ratio.size[largest(by_ratio, has_size=True)]) == {4e8}
    assert set(alone.tokens[largest(alone, has_size=False)]) == {4e9}


def test_a_back_test_with_too_little_left_says_so() -> None:
    points = equal_ratios(CHINCHILLA, RATIO_SIZES[:3], RATIOS)

    test = back_test(points, has_size=True, interval=0.9)

    assert test == (
        "Without the largest budget too little is left. The law L = E + A/N^a + B/D^b needs 3 "
        "depths, and the sweep has 2. Add depths."
    )
