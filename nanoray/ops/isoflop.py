"""Which size is best at a budget of compute: parabolas through trials of equal FLOPs.

Hoffmann et al. 2022 (Chinchilla), approach 2: at each budget log L against log N is a parabola; its
minimum is N*(C), what the budget then pays for is D*(C), and both are power laws of C.

A sweep by --flops has trials of equal FLOPs. In a sweep by ratio each size has trials of its own
budgets; there log L is interpolated along each size's tokens to budgets that at least three sizes
have in their measured range, and to none beyond it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from nanoray.config import InputError
from nanoray.ops.scaling_law import DRAWS, Array, Cost, Points

SAME_BUDGET = 0.04
"""Relative distance up to which budgets are one: the number of steps is a whole one."""
LEAST_SIZES = 3
"""A parabola has three constants."""
MOST_COMMON_BUDGETS = 5
NEAR = float(np.log(4))
"""How far from its minimum, in log N, a curve is taken for a parabola: farther out it bends less on
one side, and pulls the minimum away."""
LEAST_NEAR = 4
"""So many sizes are kept, however far apart they are."""
REACH = float(np.log(4))
"""How far beyond the sizes of its budget a minimum is looked for, in log N."""


@dataclass(frozen=True)
class Curve:
    """The sizes of one budget, and the parabola through them."""

    budget: float
    log_size: Array
    """(m,), rising."""
    mixing: Array
    """(m, n): log losses at these sizes, from the log losses of all trials."""
    is_interpolated: bool

    @property
    def center(self) -> float:
        """From which the parabola counts log N."""
        return float(self.log_size.mean())

    @property
    def solver(self) -> Array:
        """(3, n): constants of the parabola, highest power first, from the trials' log losses."""
        powers = np.vander(self.log_size - self.center, 3)
        return np.asarray(np.linalg.pinv(powers) @ self.mixing)


@dataclass(frozen=True)
class PowerLaw:
    """y = exp(at_center) * (C / center)^exponent, and its draws; of one budget without exponent."""

    center: float
    """log C"""
    at_center: float
    exponent: float | None
    draws: Array
    """(R, 2): at_center and exponent."""

    def at(self, budgets: Array) -> Array:
        """Give y at some budgets, (m,)."""
        return np.exp(self.at_center + (self.exponent or 0.0) * (np.log(budgets) - self.center))

    def draws_at(self, budgets: Array) -> Array:
        """Give y by each of the draws, (R, m)."""
        return np.exp(self.draws[:, :1] + self.draws[:, 1:] * (np.log(budgets) - self.center))


@dataclass(frozen=True)
class IsoFlops:
    """Parabolas, their minima and what follows."""

    curves: list[Curve]
    """Those whose minimum lies among their sizes."""
    losses: list[Array]
    """Measured, or interpolated, at the sizes of each."""
    parabolas: Array
    """(K, 3)"""
    size: Array
    """(K,): N* of each budget."""
    size_draws: Array
    """(R, K)"""
    size_law: PowerLaw
    tokens_law: PowerLaw
    left_out: list[str]
    """Budgets without a minimum, each with the reason."""


def fit_isoflops(
    points: Points, cost: Cost, *, noise: float | None = None, draws: int = DRAWS
) -> IsoFlops:
    """Find N*(C) and D*(C).

    Args:
        points: trials.
        cost: FLOPs per token by size.
        noise: standard deviation of a trial's log loss, where the curves are too few to tell.
        draws: how often the trials are drawn anew.

    Raises:
        InputError: no budget has three sizes with a minimum among them; the text says why.
    """
    curves = equal_budgets(points) or common_budgets(points, cost)
    if not curves:
        raise InputError(why_no_budget(points))
    log_losses = np.log(points.loss)
    near = [near_minimum(curve, log_losses) for curve in curves]
    found = [(curve, curve.solver @ log_losses) for curve in near]
    kept = [(curve, constants) for curve, constants in found if is_enclosed(curve, constants)]
    left_out = [
        f"{curve.budget:.3g} FLOPs: the smallest loss is at an end of the sizes, "
        f"{'the largest' if minimum(curve, constants[None])[0] > curve.center else 'the smallest'}"
        for curve, constants in found
        if not is_enclosed(curve, constants)
    ]
    if not kept:
        raise InputError(
            f"No budget has its best size among those tried ({'; '.join(left_out)}). "
            "Add depths on that side."
        )
    curves = [curve for curve, _ in kept]
    drawn = draw_log_losses(points, curves, noise, draws)
    log_size = np.array([minimum(curve, constants[None])[0] for curve, constants in kept])
    log_draws = np.stack([minimum(c, drawn @ c.solver.T) for c in curves], axis=1)
    budgets = np.array([curve.budget for curve in curves])
    return IsoFlops(
        curves=curves,
        losses=[np.exp(curve.mixing @ log_losses) for curve in curves],
        parabolas=np.array([constants for _, constants in kept]),
        size=np.exp(log_size),
        size_draws=np.exp(log_draws),
        size_law=power_law(budgets, log_size, log_draws),
        tokens_law=power_law(
            budgets,
            np.log(budgets / cost(np.exp(log_size))),
            np.log(budgets / cost(np.exp(log_draws))),
        ),
        left_out=left_out,
    )


def equal_budgets(points: Points) -> list[Curve]:
    """Group trials of equal FLOPs; empty for a sweep that has no three sizes with the same."""
    order = np.argsort(points.flops)
    breaks = np.flatnonzero(np.diff(np.log(points.flops[order])) > SAME_BUDGET / 4) + 1
    curves = []
    for group in np.split(order, breaks):
        spread = np.ptp(np.log(points.flops[group]))
        if spread > SAME_BUDGET or len(np.unique(points.size[group])) < LEAST_SIZES:
            continue
        chosen = group[np.argsort(points.size[group], kind="stable")]
        budget = float(np.exp(np.log(points.flops[chosen]).mean()))
        mixing = np.eye(len(points.size))[chosen]
        curves.append(Curve(budget, np.log(points.size[chosen]), mixing, is_interpolated=False))
    return curves


def common_budgets(points: Points, cost: Cost) -> list[Curve]:
    """Interpolate to budgets that lie in the measured range of at least three sizes."""
    sizes = np.unique(points.size)
    ranges = [
        (float(flops.min()), float(flops.max()))
        for flops in (points.flops[points.size == size] for size in sizes)
        if flops.min() < flops.max()
    ]
    edges = np.unique([edge for ends in ranges for edge in ends])
    shared = [
        (low, high)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        if sum(ends[0] <= low and high <= ends[1] for ends in ranges) >= LEAST_SIZES
    ]
    if not shared:
        return []
    spaced = np.geomspace(shared[0][0], shared[-1][1], MOST_COMMON_BUDGETS)
    # A rounded end must not fall out of the range that it is the end of.
    inside = np.clip(spaced, shared[0][0], shared[-1][1])
    return [
        interpolated(points, cost, budget)
        for budget in inside.tolist()
        if any(low <= budget <= high for low, high in shared)
    ]


def interpolated(points: Points, cost: Cost, budget: float) -> Curve:
    """Give the curve of a budget from the trials of each size whose range it lies in."""
    sizes, rows = [], []
    for size in np.unique(points.size).tolist():
        own = np.flatnonzero(points.size == size)
        flops = points.flops[own]
        if not flops.min() <= budget <= flops.max() or flops.min() == flops.max():
            continue
        log_tokens = float(np.log(budget / cost(np.array([size]))[0]))
        row = np.zeros(len(points.size))
        row[own] = along_tokens(np.log(points.tokens[own]), log_tokens)
        sizes.append(size)
        rows.append(row)
    return Curve(budget, np.log(np.array(sizes)), np.array(rows), is_interpolated=True)


def along_tokens(log_tokens: Array, at: float) -> Array:
    """Weigh the trials of one size so that they give log L at other tokens.

    By least squares through a parabola, or a line where there are only two lengths: log L bends,
    and a chord between neighbours lies above it.
    """
    degree = min(2, len(np.unique(log_tokens)) - 1)
    powers = np.vander(log_tokens - at, degree + 1)
    return np.asarray(np.linalg.pinv(powers)[-1])


def minimum(curve: Curve, constants: Array) -> Array:
    """Give log N of the minimum, (R,); of a parabola without one, the end that lies lower."""
    bend, slope = constants[:, 0], constants[:, 1]
    low, high = curve.log_size[0] - REACH, curve.log_size[-1] + REACH
    end = np.where(slope > 0, low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        lowest = np.where(bend > 0, curve.center - slope / (2 * bend), end)
    return np.asarray(np.clip(lowest, low, high))


def near_minimum(curve: Curve, log_losses: Array) -> Curve:
    """Keep the sizes of a curve that lie near its minimum."""
    constants = curve.solver @ log_losses
    if not is_enclosed(curve, constants):
        return curve
    away = np.abs(curve.log_size - minimum(curve, constants[None])[0])
    reach = max(NEAR, float(np.unique(away)[:LEAST_NEAR][-1]))
    kept = away <= reach
    return dataclasses.replace(curve, log_size=curve.log_size[kept], mixing=curve.mixing[kept])


def is_enclosed(curve: Curve, constants: Array) -> bool:
    """Say whether the parabola has its minimum among the sizes that were tried."""
    at = minimum(curve, constants[None])[0]
    return bool(constants[0] > 0 and curve.log_size[0] <= at <= curve.log_size[-1])


def draw_log_losses(points: Points, curves: list[Curve], noise: float | None, draws: int) -> Array:
    """Draw the trials' log losses as they might have come out, (R, n).

    A parabola has too few sizes to draw them with replacement. Deviations are drawn instead, of the
    size that the trials have around their parabolas; by how few it is known widens them.
    """
    log_losses = np.log(points.loss)
    rng = np.random.default_rng(3)
    squares, freedom = deviations(points, curves)
    if freedom > 0:
        scale = np.sqrt(squares / rng.chisquare(freedom, draws))
    elif noise is not None:
        scale = np.full(draws, noise)
    else:
        scale = np.full(draws, np.nan)
    drawn: Array = log_losses + scale[:, None] * rng.standard_normal((draws, len(log_losses)))
    return drawn


def deviations(points: Points, curves: list[Curve]) -> tuple[float, int]:
    """Give the sum of squared deviations of log losses, and their degrees of freedom.

    Of trials around the parabola of their budget, or, where budgets are interpolated, around the
    line along their size's tokens.
    """
    log_losses = np.log(points.loss)
    squares, freedom = 0.0, 0
    if not curves[0].is_interpolated:
        groups = [(curve.log_size, curve.mixing @ log_losses, 3) for curve in curves]
    else:
        groups = []
        for size in np.unique(points.size):
            own = points.size == size
            lengths = len(np.unique(points.tokens[own]))
            groups.append((np.log(points.tokens[own]), log_losses[own], min(3, lengths)))
    for x, y, p in groups:
        powers = np.vander(x - x.mean(), p)
        squares += float(((y - powers @ (np.linalg.pinv(powers) @ y)) ** 2).sum())
        freedom += len(y) - p
    return squares, freedom


def power_law(budgets: Array, log_values: Array, log_draws: Array) -> PowerLaw:
    """Draw a line through logarithms; through a single budget there is none."""
    x = np.log(budgets)
    center = float(x.mean())
    if len(x) == 1:
        draws = np.concatenate([log_draws, np.zeros_like(log_draws)], axis=1)
        return PowerLaw(center, float(log_values[0]), None, draws)
    solver = np.linalg.pinv(np.stack([np.ones_like(x), x - center], axis=1))
    at_center, exponent = (solver @ log_values).tolist()
    return PowerLaw(center, at_center, exponent, log_draws @ solver.T)


def why_no_budget(points: Points) -> str:
    """Say what keeps a sweep from having three sizes at one budget."""
    sizes = np.unique(points.size)
    if len(sizes) < LEAST_SIZES:
        return (
            f"An isoFLOP parabola needs {LEAST_SIZES} sizes at one budget, and the sweep has "
            f"{len(sizes)}. Add depths."
        )
    ranges = "; ".join(
        f"{flops.min():.3g} to {flops.max():.3g}"
        for flops in (points.flops[points.size == size] for size in sizes)
    )
    return (
        f"An isoFLOP parabola needs {LEAST_SIZES} sizes at one budget, and no three of the sweep's "
        f"{len(sizes)} have one in common (FLOPs by size: {ranges}). Sweep by --flops, or add "
        "smaller ratios to large depths and larger ones to small depths."
    )
