"""Intervals, against published values, simulation and closed forms."""

import math

import numpy as np
import pytest

from evals.statistics import (
    BETTER_WORSE_SAME,
    RIGHT_OR_WRONG,
    bootstrap_interval,
    centered,
    difference_interval,
    mean_interval,
    score_interval,
    wilson_interval,
)


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


def outcomes(num_right: int, num_examples: int) -> list[bool]:
    return [index < num_right for index in range(num_examples)]


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 1), (3, 10), (81, 263)])
def test_the_interval_of_the_mean_of_one_task_is_that_of_its_share(right: int, n: int) -> None:
    expected = [centered(end, 0.25) for end in wilson_interval(right, n)]

    assert mean_interval([(outcomes(right, n), 0.25)]) == pytest.approx(expected, abs=1e-9)


def test_tasks_that_are_alike_have_the_interval_of_one_large_task() -> None:
    found = mean_interval([(outcomes(0, 10), 0.0)] * 22)

    assert found == pytest.approx(wilson_interval(0, 220), abs=1e-9)


def test_where_many_answers_differ_the_bootstrap_says_the_same_as_the_score_interval() -> None:
    tasks = [(outcomes(300, 1000), 0.25), (outcomes(450, 900), 0.0), (outcomes(700, 1200), 0.5)]

    assert bootstrap_interval(tasks) == pytest.approx(mean_interval(tasks), abs=0.002)
    assert bootstrap_interval([(outcomes(10, 10), 0.0)]) == (1.0, 1.0)


@pytest.mark.parametrize(("better", "worse", "n"), [(12, 2, 50), (0, 0, 10), (7, 7, 20), (0, 5, 9)])
def test_the_interval_of_one_difference_is_that_of_tango(better: int, worse: int, n: int) -> None:
    first = outcomes(worse, n)
    second = [worse <= index < worse + better for index in range(n)]

    for end in difference_interval([(first, second, 0.0)]):
        # Tango 1998: the score test, with the likeliest share that is worse in closed form.
        linear = (2 * n - better + worse) * end - better - worse
        root = math.sqrt(linear**2 + 8 * n * worse * end * (1 - end))
        share = (root - linear) / (4 * n)
        score = (better - worse - n * end) / math.sqrt(n * (2 * share + end * (1 - end)))
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


def test_two_models_that_both_know_nothing_may_differ() -> None:
    nothing = outcomes(0, 10)

    low, high = difference_interval([(nothing, nothing, 0.0)])

    # Tango's equation is then n d^2 = z^2 d (1 - d).
    assert (-low, high) == pytest.approx([1.959964**2 / (10 + 1.959964**2)] * 2, abs=1e-6)


def test_what_both_models_get_wrong_does_not_widen_their_difference() -> None:
    hard = [False] * 1000
    one_better = [True, *hard[1:]]

    low, high = difference_interval([(hard, one_better, 0.0)])

    assert -0.004 < low < 0 < 0.001 < high < 0.006


@pytest.mark.parametrize(
    ("num_tasks", "n", "share"), [(1, 30, 0.1), (6, 10, 0.05), (6, 10, 0.95), (22, 10, 0.02)]
)
def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says(
    num_tasks: int, n: int, share: float
) -> None:
    right = np.random.default_rng(1).binomial(n, share, (300, num_tasks)).astype(float)
    scales = np.full(num_tasks, 1 / num_tasks)

    low, high = score_interval(np.stack([right, n - right], -1), RIGHT_OR_WRONG, scales)

    held = float(np.mean((low <= share) & (share <= high)))
    assert 0.91 <= held <= 0.99  # 300 draws: 0.013; whole numbers of answers: about as much


@pytest.mark.parametrize(("better", "worse"), [(0.02, 0.02), (0.3, 0.05)])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(
    better: float, worse: float
) -> None:
    rng = np.random.default_rng(2)
    counts = rng.multinomial(30, [better, worse, 1 - better - worse], (300, 6)).astype(float)

    low, high = score_interval(counts, BETTER_WORSE_SAME, np.full(6, 1 / 6))

    held = float(np.mean((low <= better - worse) & (better - worse <= high)))
    assert 0.91 <= held <= 0.99
