"""How sure a score is: intervals for shares of right answers, and for means over tasks."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nanoray.metrics import Z_95

BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 10_000, 0
RIGHT_OR_WRONG = np.array([1.0, 0.0])
"""What an answer counts in a share."""
BETTER_WORSE_SAME = np.array([1.0, -1.0, 0.0])
"""What a pair of answers to one question counts in a difference."""
HALVINGS, INNER_HALVINGS = 40, 50
"""Of brackets, whose width then is below all digits that are shown."""
TILTS = (-14.0, 14.0)
"""Logarithms between which the multiplier lies, in units of the largest task."""

Interval = tuple[float, float]
Outcomes = Sequence[bool]
Floats = npt.NDArray[np.float64]


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
    """Give the 95 % score interval of the mean of centred accuracies; of one task it is Wilson's.

    Args:
        tasks: outcomes and baseline of each task.
    """
    counts = [(sum(outcomes), len(outcomes) - sum(outcomes)) for outcomes, _ in tasks]
    scales = np.array([1 / (1 - baseline) for _, baseline in tasks]) / len(tasks)
    guessing = sum(baseline / (1 - baseline) for _, baseline in tasks) / len(tasks)
    low, high = score_interval(np.array(counts, dtype=float), RIGHT_OR_WRONG, scales)
    return float(low) - guessing, float(high) - guessing


def bootstrap_interval(tasks: Sequence[tuple[Outcomes, float]]) -> Interval:
    """Give the 95 % bootstrap interval of the mean of centred accuracies (B. Efron 1979).

    The examples of each task are drawn anew with replacement, so the number of right ones has a
    binomial distribution. It has no width where all of them are right or wrong.

    Args:
        tasks: outcomes and baseline of each task.
    """
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    total = np.zeros(BOOTSTRAP_DRAWS)
    for outcomes, baseline in tasks:
        n = len(outcomes)
        drawn = rng.binomial(n, sum(outcomes) / n, BOOTSTRAP_DRAWS) / n
        total += (drawn - baseline) / (1 - baseline)
    low, high = np.quantile(total / len(tasks), [0.025, 0.975])
    return float(low), float(high)


def difference_interval(tasks: Sequence[tuple[Outcomes, Outcomes, float]]) -> Interval:
    """Give the 95 % score interval of the mean difference of two models, second minus first.

    Both have answered the same examples: what is hard for both does not widen the interval. Of one
    task it is the interval of T. Tango 1998 (Statistics in Medicine 17).

    Args:
        tasks: outcomes of the first, outcomes of the second, baseline.
    """
    counts = []
    for first, second, _ in tasks:
        assert len(first) == len(second), "both have answered the same examples"
        better = sum(b and not a for a, b in zip(first, second, strict=True))
        worse = sum(a and not b for a, b in zip(first, second, strict=True))
        counts.append((better, worse, len(first) - better - worse))
    scales = np.array([1 / (1 - baseline) for *_, baseline in tasks]) / len(tasks)
    low, high = score_interval(np.array(counts, dtype=float), BETTER_WORSE_SAME, scales)
    return float(low), float(high)


def score_interval(counts: Floats, values: Floats, scales: Floats) -> tuple[Floats, Floats]:
    """Give the 95 % score interval of a weighted sum over tasks of mean values of their outcomes.

    It holds all sums that a score test does not reject: the distance from what was found is at most
    1.96 standard deviations, which are those of the likeliest shares that have this sum
    (O. Miettinen and M. Nurminen 1985 for two shares; A. Martin Andres et al. 2011, Statistical
    Methods in Medical Research 20, for any sum). So it has a width where every answer is right, and
    with many small tasks it is not drawn to the middle, as draws from Beta(k + 1/2, n - k + 1/2)
    are: their intervals of 22 tasks with 10 questions each, of which 2 % are right, held those
    2 % in none of 600 trials.

    Args:
        counts: (..., tasks, kinds), how often each kind of outcome was seen.
        values: (kinds,), what each of them counts.
        scales: (tasks,), above 0.

    Returns:
        Both ends, (...,).
    """
    n = counts.sum(-1)
    found = ((counts @ values) / n * scales).sum(-1)
    unit = (n / scales).max(-1)
    low, high = np.full((2, *found.shape), TILTS[0]), np.full((2, *found.shape), TILTS[1])
    signs = np.array([1.0, -1.0]).reshape(2, *[1] * found.ndim)  # of the lower and the upper end
    ends = np.stack([found, found])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tilts = (signs * unit * np.exp(middle))[..., None] * scales
        shares = likeliest_shares(np.broadcast_to(counts, (2, *counts.shape)), values, tilts)
        means = shares @ values
        variances = (shares @ values**2 - means**2) / n
        ends = (means * scales).sum(-1)
        allowed = Z_95**2 * (variances * scales**2).sum(-1)
        inside = (found - ends) ** 2 <= allowed + 1e-15  # what cannot move has no variance either
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return ends[0], ends[1]


def likeliest_shares(counts: Floats, values: Floats, tilts: Floats) -> Floats:
    """Give the shares of largest likelihood among those of one sum, by its Lagrange multiplier.

    They are counts / (m + tilt * values), with the m at which they add up to 1. What was never seen
    gets the rest where even the smallest m leaves one.

    Args:
        counts: (..., tasks, kinds).
        values: (kinds,).
        tilts: (..., tasks), multiplier times scale; above 0 it takes from large values.

    Returns:
        (..., tasks, kinds).
    """
    tilted = tilts[..., None] * values
    gaps = tilted - tilted.min(-1, keepdims=True)
    seen = counts > 0
    low, high = np.zeros_like(tilts)[..., None], counts.sum(-1, keepdims=True)
    for _ in range(INNER_HALVINGS):
        middle = (low + high) / 2
        total = np.divide(counts, middle + gaps, where=seen, out=np.zeros_like(gaps)).sum(-1)
        is_small = total[..., None] > 1
        low, high = np.where(is_small, middle, low), np.where(is_small, high, middle)
    shares = np.divide(counts, high + gaps, where=seen, out=np.zeros_like(gaps))
    least = gaps == 0
    rest = 1 - shares.sum(-1, keepdims=True)
    return shares + np.where(least, rest / least.sum(-1, keepdims=True), 0)
