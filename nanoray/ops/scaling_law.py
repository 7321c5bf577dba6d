"""The law L = E + A/N^a + B/D^b through the trials of a sweep, and how sure it is.

Form and loss are those of Hoffmann et al. 2022 (Chinchilla), approach 3: the logarithm of the loss
as a log-sum-exp, a Huber loss with delta 1e-3. Their fit stopped too early, on a scale at which
L-BFGS took the loss for flat (Besiroglu et al. 2024): here it is divided by delta^2.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Array = npt.NDArray[np.float64]
Cost = Callable[[Array], Array]
"""FLOPs per token by the number of scaling parameters."""

HUBER_DELTA = 1e-3
EXPONENTS = (0.03, 1.5)
"""Least and greatest of a and b; published ones lie between 0.2 and 0.5."""
STARTS_PER_EXPONENT = 12
LEAST_SHARE = 1e-4
"""A term of the law is at least this share of the loss: the logarithm of zero leads nowhere."""
STILL, PATIENCE = 1e-6, 4
"""Relative gain below which a fit stands still, and for how many steps before it is left."""
DRAWS = 400
RESAMPLED_FROM = 8
"""Trials per constant of a law from which on trials are drawn anew; see `draw_trials`."""


@dataclass(frozen=True)
class Points:
    """Trials as numbers, (n,) float64 each."""

    size: Array
    """N: weights that multiply."""
    tokens: Array
    """D."""
    flops: Array
    """C."""
    loss: Array
    """L: bits per byte."""

    def take(self, chosen: npt.NDArray[np.bool_]) -> "Points":
        """Give some of the trials."""
        return Points(self.size[chosen], self.tokens[chosen], self.flops[chosen], self.loss[chosen])


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    low: float
    high: float

    def holds(self, measured: float) -> bool:
        """Say whether a measured value lies inside."""
        return self.low <= measured <= self.high

    def overlaps(self, other: "Estimate") -> bool:
        """Say whether the two intervals have a value in common."""
        return self.low <= other.high and other.low <= self.high


def estimate(value: float, draws: Array, interval: float) -> Estimate:
    """Put the middle part of some draws around a value."""
    low, high = np.quantile(draws, [(1 - interval) / 2, (1 + interval) / 2])
    return Estimate(float(value), float(low), float(high))


@dataclass(frozen=True)
class Law:
    """A fitted law, and laws fitted to draws of the trials as they might have come out.

    Constants stand in rows of 1 + 2k: log E, then the logarithm of each of the k terms at the
    trials' centre and its exponent. A sweep of one depth has no term of N: k is 1 there.
    """

    constants: Array
    """(1 + 2k,)"""
    draws: Array
    """(R, 1 + 2k)"""
    center: Array
    """(k,): mean of log N and log D, or of log D alone."""
    noise: float
    """Standard deviation of a trial's log loss around the law."""
    noise_draws: Array
    """(R,)"""
    is_resampled: bool
    """Draws are of the trials; else of their deviations from the law."""

    @property
    def has_size(self) -> bool:
        """Whether the law knows of N."""
        return len(self.center) == 2

    def named(self, constants: Array) -> dict[str, float]:
        """Write constants as the field does: E, A, alpha, B, beta."""
        names = (("A", "alpha"), ("B", "beta")) if self.has_size else (("B", "beta"),)
        found = {"E": float(np.exp(constants[0]))}
        for j, (factor, exponent) in enumerate(names):
            at_center, power = constants[1 + 2 * j], constants[2 + 2 * j]
            found[factor] = float(np.exp(at_center + power * self.center[j]))
            found[exponent] = float(power)
        return found

    def loss(self, size: Array, tokens: Array) -> Array:
        """Give the loss, shaped as the arguments."""
        return np.exp(log_loss(self.constants, self._inputs(size, tokens)))

    def loss_draws(self, size: Array, tokens: Array, *, of_a_run: bool = False) -> Array:
        """Give the loss by each of the draws, (R, n), if asked with the noise of a single run."""
        drawn = log_loss(self.draws, self._inputs(size, tokens))
        if of_a_run:
            # The same deviations for all that is asked, so that a curve's band is smooth.
            rng = np.random.default_rng(2)
            drawn = drawn + (self.noise_draws * rng.standard_normal(len(drawn)))[:, None]
        return np.exp(drawn)

    def best_size(self, budgets: Array, cost: Cost) -> Array:
        """Give N*(C), (m,)."""
        return self._best_sizes(self.constants[None], budgets, cost)[0]

    def best_size_draws(self, budgets: Array, cost: Cost) -> Array:
        """Give N*(C) by each of the draws, (R, m)."""
        return self._best_sizes(self.draws, budgets, cost)

    def _best_sizes(self, constants: Array, budgets: Array, cost: Cost) -> Array:
        """Search N at constant C on a grid, (R, m); between its points by a parabola."""
        assert self.has_size, "a law without N has no best N"
        found = np.empty((len(constants), len(budgets)))
        offsets = np.linspace(-6.0, 6.0, 401)
        for i, budget in enumerate(budgets.tolist()):
            log_size = 0.5 * np.log(budget / 6) + offsets
            size = np.exp(log_size)
            losses = log_loss(constants, self._inputs(size, budget / cost(size)))
            at = np.clip(losses.argmin(axis=1), 1, len(offsets) - 2)
            left, middle, right = (
                np.take_along_axis(losses, (at + step)[:, None], axis=1)[:, 0]
                for step in (-1, 0, 1)
            )
            bend = np.maximum(left - 2 * middle + right, 1e-300)
            shift = np.clip(0.5 * (left - right) / bend, -1, 1)
            found[:, i] = log_size[at] + shift * (offsets[1] - offsets[0])
        return np.exp(found)

    def _inputs(self, size: Array, tokens: Array) -> Array:
        """Give the law's inputs, (n, k)."""
        return inputs(size, tokens, self.has_size) - self.center


def inputs(size: Array, tokens: Array, has_size: bool) -> Array:
    """Give log N and log D side by side, or log D alone, (n, k)."""
    columns = (np.log(size), np.log(tokens)) if has_size else (np.log(tokens),)
    return np.stack(np.broadcast_arrays(*columns), axis=-1)


def log_loss(constants: Array, x: Array) -> Array:
    """Give log L, (R, n); of constants without the first axis (n,)."""
    terms = log_terms(constants, x)
    highest = terms.max(axis=0)
    found: Array = highest + np.log(np.exp(terms - highest).sum(axis=0))
    return found if constants.ndim == 2 else found[0]


def log_loss_and_slopes(constants: Array, x: Array) -> tuple[Array, Array]:
    """Give log L, (R, n), and its derivatives by the constants, (R, n, 1 + 2k)."""
    terms = log_terms(constants, x)
    highest = terms.max(axis=0)
    parts = np.exp(terms - highest)
    whole = parts.sum(axis=0)
    shares = parts / whole
    slopes = np.empty((*whole.shape, 2 * len(shares) - 1))
    slopes[..., 0] = shares[0]
    for j in range(x.shape[1]):
        slopes[..., 1 + 2 * j] = shares[1 + j]
        slopes[..., 2 + 2 * j] = -shares[1 + j] * x[:, j]
    return highest + np.log(whole), slopes


def log_terms(constants: Array, x: Array) -> Array:
    """Give the logarithm of every term of the law, (1 + k, R, n): sums over few go fastest so."""
    constants = np.atleast_2d(constants)
    terms = np.empty((1 + x.shape[1], len(constants), len(x)))
    terms[0] = constants[:, :1]
    for j in range(x.shape[1]):
        terms[1 + j] = constants[:, 1 + 2 * j, None] - constants[:, 2 + 2 * j, None] * x[:, j]
    return terms


def huber(deviations: Array) -> Array:
    """Give the Huber loss of each deviation, in units of delta^2."""
    far = np.abs(deviations) / HUBER_DELTA
    return np.where(far <= 1, 0.5 * far**2, far - 0.5)


def limits(log_losses: Array, num_terms: int) -> tuple[Array, Array]:
    """Give the least and the greatest value of every constant, (1 + 2k,) each."""
    least = np.log(LEAST_SHARE) + log_losses.min()
    low = np.array([least] + [least, EXPONENTS[0]] * num_terms)
    high = np.array([log_losses.max()] + [log_losses.max() + 3, EXPONENTS[1]] * num_terms)
    return low, high


def starts(x: Array, log_losses: Array) -> Array:
    """Give constants to begin with: all exponents of a grid, the rest by least squares."""
    k = x.shape[1]
    grid = np.geomspace(EXPONENTS[0], EXPONENTS[1], STARTS_PER_EXPONENT)
    exponents = np.stack(np.meshgrid(*[grid] * k), axis=-1).reshape(-1, k)
    loss = np.exp(log_losses)
    found = []
    for powers in exponents:
        # Divided by the loss, so that relative deviations count, as they do in logarithms.
        design = np.concatenate([np.ones((len(x), 1)), np.exp(-powers * x)], axis=1)
        factors = np.linalg.lstsq(design / loss[:, None], np.ones(len(x)), rcond=None)[0]
        logs = np.log(np.maximum(factors, 10 * LEAST_SHARE * loss.min()))
        found.append([logs[0], *np.stack([logs[1:], powers], axis=1).ravel()])
    return np.array(found)


def refine(start: Array, x: Array, targets: Array, weights: Array, num_steps: int = 60) -> Array:
    """Go downhill from many starts at once, each with its own targets and weights.

    Levenberg-Marquardt, with weights that make squares a Huber loss. It is what lets hundreds of
    draws be fitted in a fraction of a second; a test compares it with L-BFGS.

    Args:
        start: (R, 1 + 2k).
        x: (n, k), the same for all.
        targets: log losses, (R, n).
        weights: how often each trial counts, (R, n).
        num_steps: most steps.
    """
    low, high = limits(targets, x.shape[1])
    constants = np.clip(start, low, high)
    damping, waiting = np.full(len(constants), 1e-2), np.zeros(len(constants))
    values = (weights * huber(log_loss(constants, x) - targets)).sum(axis=1)
    for _ in range(num_steps):
        predicted, slopes = log_loss_and_slopes(constants, x)
        deviations = predicted - targets
        squares = weights * np.minimum(1, HUBER_DELTA / np.maximum(np.abs(deviations), 1e-300))
        weighted = (slopes * squares[..., None]).transpose(0, 2, 1)
        bends = weighted @ slopes
        slope = (weighted @ deviations[..., None])[..., 0]
        diagonal = np.einsum("rii->ri", bends)
        diagonal += damping[:, None] * diagonal + 1e-12
        stepped = np.clip(constants - np.linalg.solve(bends, slope[..., None])[..., 0], low, high)
        after = (weights * huber(log_loss(stepped, x) - targets)).sum(axis=1)
        is_better = after < values
        still = values - after > STILL * values
        waiting = np.where(still, 0, waiting + 1)
        if waiting.min() > PATIENCE:
            break
        constants = np.where(is_better[:, None], stepped, constants)
        values = np.where(is_better, after, values)
        damping = np.clip(np.where(is_better, damping / 4, damping * 5), 1e-9, 1e9)
    return constants


def fit_constants(x: Array, targets: Array) -> Array:
    """Fit the law to centred inputs (n, k) and log losses (n,): many starts, the best by L-BFGS."""
    begun = starts(x, targets)
    many = np.broadcast_to(targets, (len(begun), len(targets)))
    refined = refine(begun, x, many, np.ones_like(many))
    values = huber(log_loss(refined, x) - targets).sum(axis=1)

    def value_and_slope(constants: Array) -> tuple[float, Array]:
        predicted, slopes = log_loss_and_slopes(constants, x)
        deviations = predicted[0] - targets
        pull = np.clip(deviations / HUBER_DELTA, -1, 1) / HUBER_DELTA
        return float(huber(deviations).sum()), pull @ slopes[0]

    bounds = list(zip(*limits(targets, x.shape[1]), strict=True))
    ends = [
        minimize(
            value_and_slope,
            refined[i],
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-12, "gtol": 1e-7},
        )
        for i in np.argsort(values)[:3]
    ]
    return np.asarray(min(ends, key=lambda end: float(end.fun)).x)


def fit_law(points: Points, *, has_size: bool = True, draws: int = DRAWS) -> Law:
    """Fit a law to trials, and to draws of them; the caller has seen to it that they suffice."""
    x = inputs(points.size, points.tokens, has_size)
    center = x.mean(axis=0)
    x, targets = x - center, np.log(points.loss)
    constants = fit_constants(x, targets)
    n, p = len(targets), len(constants)
    assert n > p, "trials suffice"
    noise = float(np.sqrt(((log_loss(constants, x) - targets) ** 2).sum() / (n - p)))
    is_resampled = n >= RESAMPLED_FROM * p
    drawn, weights, noises = draw_trials(
        log_loss(constants, x), targets, noise=noise, p=p, draws=draws
    )
    begun = np.broadcast_to(constants, (draws, p))
    fitted = refine(begun, x, drawn, weights)
    return Law(constants, fitted, center, noise, noises, is_resampled)


def draw_trials(
    predicted: Array, targets: Array, *, noise: float, p: int, draws: int
) -> tuple[Array, Array, Array]:
    """Draw what the trials might have been: log losses (R, n), their weights (R, n), noise (R,).

    Many trials are drawn anew with replacement, which asks nothing of their noise. Of few, a draw
    would leave fewer different ones than the law has constants. There the trials stay, and
    deviations are drawn around the law; how large these are is itself uncertain by so few
    trials, so their size is drawn too (from the scaled inverse chi-squared distribution).
    """
    rng = np.random.default_rng(1)
    n = len(targets)
    noises = noise * np.sqrt((n - p) / rng.chisquare(n - p, draws))
    if n >= RESAMPLED_FROM * p:
        weights = rng.multinomial(n, np.full(n, 1 / n), draws).astype(np.float64)
        return np.broadcast_to(targets, (draws, n)), weights, noises
    drawn = predicted + noises[:, None] * rng.standard_normal((draws, n))
    return drawn, np.ones((draws, n)), noises
