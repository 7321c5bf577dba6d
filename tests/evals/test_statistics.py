"""Intervals, against published values, simulation and closed forms."""

import numpy as np
import pytest

from evals.statistics import centered, difference_interval, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("num_correct", "num_examples", "expected"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_intervals_of_shares_are_the_published_ones(
    num_correct: int, num_examples: int, expected: tuple[float, float]
) -> None:
    assert wilson_interval(num_correct, num_examples) == pytest.approx(expected, abs=5e-5)


def test_an_interval_never_leaves_zero_to_one() -> None:
    assert wilson_interval(0, 1)[0] == 0
    assert wilson_interval(5, 5)[1] == 1


def test_guessing_is_centred_to_zero_and_knowing_to_one() -> None:
    assert [centered(a, 0.25) for a in (0.25, 1.0, 0.0)] == pytest.approx([0, 1, -1 / 3])


def test_the_interval_of_a_mean_is_that_of_drawing_examples_anew() -> None:
    rng = np.random.default_rng(1)
    tasks = [(rng.random(n) < p, b) for n, p, b in ((50, 0.4, 0.25), (300, 0.7, 0.5), (9, 0, 0))]
    drawn = []
    for _ in range(4000):
        means = [rng.choice(outcomes, len(outcomes)).mean() for outcomes, _ in tasks]
        pairs = zip(means, tasks, strict=True)
        drawn.append(np.mean([centered(float(mean), b) for mean, (_, b) in pairs]))
    expected = np.quantile(drawn, [0.025, 0.975])

    found = mean_interval([(outcomes.tolist(), b) for outcomes, b in tasks])

    assert found == pytest.approx(expected.tolist(), abs=0.01)  # 4,000 draws


def test_what_both_models_get_wrong_does_not_widen_their_difference() -> None:
    hard = [False] * 1000
    one_better = [True, *hard[1:]]

    low, high = difference_interval([(hard, one_better, 0.0)])

    assert low == 0
    assert 0.001 < high < 0.005
    assert difference_interval([(hard, hard, 0.25)]) == (0, 0)


def test_the_interval_of_a_difference_is_that_of_drawing_pairs_anew() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random(200) < 0.4, rng.random(200) < 0.6
    places = rng.integers(0, 200, (4000, 200))
    expected = np.quantile((b[places].mean(1) - a[places].mean(1)) / 0.75, [0.025, 0.975])

    found = difference_interval([(a.tolist(), b.tolist(), 0.25)])

    assert found == pytest.approx(expected.tolist(), abs=0.015)
