"""Both ways to find the best size, whether they agree, and how well the law would have predicted.

N is the number of weights that multiply (matrices and unembedding: nanochat's count), D the number
of training tokens, C the FLOPs of training as `model/scaling.py` counts them.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanoray.config import InputError
from nanoray.ops.isoflop import SAME_BUDGET, IsoFlops, equal_budgets, fit_isoflops
from nanoray.ops.scaling_law import DRAWS, Array, Cost, Estimate, Law, Points, estimate, fit_law

LAW, ISOFLOP = "law", "isoflop"
LEAST_SPREAD = 0.1
"""Standard deviation of log D among trials of like N, below which the two cannot be told apart."""


@dataclass(frozen=True)
class Fits:
    """What a sweep's trials allow, and why not what they do not."""

    points: Points
    cost: Cost
    law: Law | None
    isoflops: IsoFlops | None
    impossible: dict[str, str]
    """`LAW` or `ISOFLOP` -> why not, in one sentence."""


@dataclass(frozen=True)
class Agreement:
    """The best size by both methods at a budget."""

    budget: float
    by_law: Estimate
    by_isoflops: Estimate
    ratio: Estimate
    """Of the isoFLOP size to the law's."""

    @property
    def agrees(self) -> bool:
        """Whether the intervals have a value in common."""
        return self.by_law.overlaps(self.by_isoflops)


@dataclass(frozen=True)
class BackTest:
    """The trials of the largest budget, predicted from the others."""

    left_out: npt.NDArray[np.bool_]
    """(n,)"""
    measured: Array
    """(m,)"""
    predicted: list[Estimate]
    factor: float
    """Of the FLOPs, from the largest trial that the law was fitted to, to the largest predicted."""

    @property
    def num_inside(self) -> int:
        """How many measured values lie in their interval."""
        pairs = zip(self.predicted, self.measured.tolist(), strict=True)
        return sum(predicted.holds(measured) for predicted, measured in pairs)

    @property
    def worst(self) -> float:
        """Largest relative distance of measured and predicted."""
        predicted = np.array([p.value for p in self.predicted])
        return float(np.abs(self.measured / predicted - 1).max())


def fit_all(points: Points, cost: Cost, *, draws: int = DRAWS) -> Fits:
    """Fit what can be fitted."""
    impossible: dict[str, str] = {}
    law, isoflops = None, None
    why_not = why_no_law(points)
    if why_not is None:
        law = fit_law(points, draws=draws)
    else:
        impossible[LAW] = why_not
    try:
        noise = law.noise if law else None
        isoflops = fit_isoflops(points, cost, noise=noise, draws=draws)
    except InputError as error:
        impossible[ISOFLOP] = str(error)
    return Fits(points, cost, law, isoflops, impossible)


def why_no_law(points: Points) -> str | None:
    """Say why L = E + A/N^a + B/D^b cannot be fitted; None if it can."""
    n, sizes = len(points.loss), len(np.unique(points.size))
    if sizes < 3:
        return (
            f"The law L = E + A/N^a + B/D^b needs 3 depths, and the sweep has {sizes}. Add depths."
        )
    if n < 6:
        return (
            f"The law L = E + A/N^a + B/D^b needs 6 trials for its 5 constants, not {n}. Add some."
        )
    x, y = np.log(points.size), np.log(points.tokens)
    apart = y - np.polynomial.Polynomial.fit(x, y, 1)(x)
    if apart.std() < LEAST_SPREAD:
        return (
            "The law L = E + A/N^a + B/D^b needs sizes with more than one number of tokens each; "
            "here the tokens follow from the size. Add ratios or budgets."
        )
    return None


def why_no_token_law(points: Points) -> str | None:
    """Say why L = E + B/D^b cannot be fitted to trials of one size; None if it can."""
    lengths = len(np.unique(points.tokens))
    if lengths < 3 or len(points.loss) < 4:
        return (
            "The law L = E + B/D^b of one depth needs 4 trials of 3 lengths, not "
            f"{len(points.loss)} of {lengths}. Add ratios."
        )
    return None


def agreement(fits: Fits, interval: float) -> Agreement | None:
    """Compare the best sizes at the largest isoFLOP budget; None if a method is missing."""
    if fits.law is None or fits.isoflops is None:
        return None
    budget = np.array([fits.isoflops.curves[-1].budget])
    law = float(fits.law.best_size(budget, fits.cost)[0])
    law_draws = fits.law.best_size_draws(budget, fits.cost)[:, 0]
    isoflops = float(fits.isoflops.size_law.at(budget)[0])
    isoflop_draws = fits.isoflops.size_law.draws_at(budget)[:, 0]
    return Agreement(
        float(budget[0]),
        estimate(law, law_draws, interval),
        estimate(isoflops, isoflop_draws, interval),
        estimate(isoflops / law, isoflop_draws / law_draws, interval),
    )


def back_test(
    points: Points, *, has_size: bool, interval: float, draws: int = DRAWS
) -> BackTest | str:
    """Fit all but the largest budget and predict it; a sentence where too little is left."""
    left_out = largest(points, has_size)
    rest, held = points.take(~left_out), points.take(left_out)
    why_not = why_no_law(rest) if has_size else why_no_token_law(rest)
    if why_not is not None:
        return f"Without the largest budget too little is left. {why_not}"
    law = fit_law(rest, has_size=has_size, draws=draws)
    values = law.loss(held.size, held.tokens)
    drawn = law.loss_draws(held.size, held.tokens, of_a_run=True)
    predicted = [estimate(v, drawn[:, i], interval) for i, v in enumerate(values.tolist())]
    return BackTest(left_out, held.loss, predicted, float(held.flops.max() / rest.flops.max()))


def largest(points: Points, has_size: bool) -> npt.NDArray[np.bool_]:
    """Mark the trials of the largest budget, (n,) of bool.

    Where budgets are equal, those of the largest one; else all of the largest size, whose longest
    run is the largest budget; of one size alone, the longest runs.
    """
    if not has_size:
        return np.asarray(points.tokens >= points.tokens.max() * (1 - SAME_BUDGET))
    if equal_budgets(points):
        return np.asarray(points.flops >= points.flops.max() * (1 - SAME_BUDGET))
    return np.asarray(points.size == points.size.max())
