"""How sure a score is: intervals for shares of right answers, and for means over tasks."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Z_95 = 1.959963984540054
"""Standard normal quantile of 97.5 %: of all intervals here, 95 % hold the true value."""
BOOTSTRAP_DRAWS = 10_000
BOOTSTRAP_SEED = 0

Interval = tuple[float, float]
Outcomes = Sequence[bool]


def wilson_interval(num_correct: int, num_examples: int) -> Interval:
    """Give the 95 % interval of a share (E. B. Wilson 1927): it also works at 0 and at 1."""
    n, z = num_examples, Z_95
    share = num_correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def centered(accuracy: float, baseline: float) -> float:
    """Rescale a share of right answers so that guessing gives 0, and 1 stays 1."""
    return (accuracy - baseline) / (1 - baseline)


def mean_interval(tasks: Sequence[tuple[Outcomes, float]]) -> Interval:
    """Give the 95 % bootstrap interval of the mean of centred accuracies.

    The examples of each task are drawn anew with replacement; the number of right ones among them
    then has a binomial distribution, which is drawn from directly.

    Args:
        tasks: outcomes and baseline of each task.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    total: npt.NDArray[np.float64] = np.zeros(BOOTSTRAP_DRAWS)
    for outcomes, baseline in tasks:
        n = len(outcomes)
        drawn = rng.binomial(n, sum(outcomes) / n, BOOTSTRAP_DRAWS) / n
        total += (drawn - baseline) / (1 - baseline)
    low, high = np.quantile(total / len(tasks), [0.025, 0.975])
    return float(low), float(high)


def difference_interval(tasks: Sequence[tuple[Outcomes, Outcomes, float]]) -> Interval:
    """Give the 95 % bootstrap interval of the mean difference of two models, second minus first.

    Both have answered the same examples, which are drawn together: what is hard for both does not
    widen the interval.

    Args:
        tasks: outcomes of the first, outcomes of the second, baseline.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    total: npt.NDArray[np.float64] = np.zeros(BOOTSTRAP_DRAWS)
    for first, second, baseline in tasks:
        n = len(first)
        assert n == len(second), "both have answered the same examples"
        better = sum(b and not a for a, b in zip(first, second, strict=True))
        worse = sum(a and not b for a, b in zip(first, second, strict=True))
        shares = [better / n, worse / n, (n - better - worse) / n]
        drawn = rng.multinomial(n, shares, BOOTSTRAP_DRAWS)
        total += (drawn[:, 0] - drawn[:, 1]) / n / (1 - baseline)
    low, high = np.quantile(total / len(tasks), [0.025, 0.975])
    return float(low), float(high)
