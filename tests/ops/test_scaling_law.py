"""The law and its intervals."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from nanoray.ops.scaling_law import (
    HUBER_DELTA,
    Points,
    draw_trials,
    estimate,
    fit_law,
    huber,
    inputs,
    log_loss,
    log_loss_and_slopes,
    refine,
)
from tests.ops.synthetic_sweep import (
    BESIROGLU,
    CHINCHILLA,
    best_size_of,
    equal_flops,
    equal_ratios,
    loss_of,
    six,
)

BUDGETS = np.geomspace(1e18, 1e21, 6)
SIZES = np.geomspace(5e7, 5e9, 7)
SWEEP_BUDGETS, SWEEP_SIZES = np.geomspace(1e18, 1e19, 4), np.geomspace(7e7, 4.35e8, 6)
"""nanochat's sweep: four budgets, depths 10 to 20."""
RATIOS, RATIO_SIZES = np.array([5.0, 10, 20, 40]), np.array([7e7, 1.35e8, 2.4e8, 4e8])
"""Four depths at four ratios."""


def coverage(kind: str, noise: float, num_draws: int) -> tuple[int, int]:
    """Count how often N*(C) and D*(C) at the largest budget lie in their 90 % intervals."""
    inside_size = inside_tokens = 0
    for seed in range(num_draws):
        if kind == "flops":
            points = equal_flops(CHINCHILLA, SWEEP_BUDGETS, SWEEP_SIZES, noise=noise, seed=seed)
        else:
            points = equal_ratios(CHINCHILLA, RATIO_SIZES, RATIOS, noise=noise, seed=seed)
        law = fit_law(points, draws=200)
        budget = np.array([points.flops.max()])
        size, drawn = law.best_size(budget, six)[0], law.best_size_draws(budget, six)[:, 0]
        true = best_size_of(CHINCHILLA, budget)[0]
        inside_size += estimate(size, drawn, 0.9).holds(true)
        tokens = budget[0] / 6
        inside_tokens += estimate(tokens / size, tokens / drawn, 0.9).holds(tokens / true)
    return inside_size, inside_tokens


@pytest.mark.parametrize("published", [CHINCHILLA, BESIROGLU])
def test_published_constants_are_found_in_their_own_grid(published: dict[str, float]) -> None:
    points = equal_flops(published, BUDGETS, SIZES)

    law = fit_law(points, draws=10)

    found = law.named(law.constants)
    # Without noise only the Huber loss's own end (1e-9 of it) keeps the constants apart.
    for name in ("E", "alpha", "beta"):
        assert found[name] == pytest.approx(published[name], rel=2e-3)
    for name in ("A", "B"):
        assert found[name] == pytest.approx(published[name], rel=3e-2)
    assert law.best_size(BUDGETS, six) == pytest.approx(best_size_of(published, BUDGETS), rel=5e-3)


def test_the_slopes_are_those_of_finite_differences() -> None:
    x = np.random.default_rng(0).standard_normal((9, 2))
    constants = np.array([[0.3, -0.7, 0.4, -0.5, 0.3]])

    _, slopes = log_loss_and_slopes(constants, x)

    for j in range(5):
        step = 1e-6 * np.eye(5)[j]
        change = log_loss(constants + step, x) - log_loss(constants - step, x)
        np.testing.assert_allclose(slopes[0, :, j], change[0] / 2e-6, rtol=1e-6, atol=1e-9)


def test_no_other_solver_finds_a_better_fit() -> None:
    points = equal_flops(CHINCHILLA, SWEEP_BUDGETS, SWEEP_SIZES, noise=0.003, seed=3)
    x = inputs(points.size, points.tokens, has_size=True)
    x = x - x.mean(axis=0)
    targets = np.log(points.loss)

    law = fit_law(points, draws=10)

    ours = huber(log_loss(law.constants, x) - targets).sum()
    rng = np.random.default_rng(0)
    theirs = min(
        least_squares(
            lambda constants: log_loss(constants, x) - targets,
            law.constants + rng.normal(0, 0.2, 5),
            loss="huber",
            f_scale=HUBER_DELTA,
            xtol=1e-12,
            ftol=1e-12,
        ).cost
        for _ in range(8)
    )
    # scipy's cost is of squares, ours in units of delta^2.
    assert ours <= theirs / HUBER_DELTA**2 * (1 + 1e-4)


def test_draws_are_fitted_as_well_as_by_many_starts() -> None:
    points = equal_ratios(CHINCHILLA, RATIO_SIZES, RATIOS, noise=0.003, seed=5)
    law = fit_law(points, draws=10)
    x = inputs(points.size, points.tokens, has_size=True) - law.center
    rng = np.random.default_rng(1)
    targets = log_loss(law.constants, x) + 0.003 * rng.standard_normal((6, len(x)))
    weights = np.ones_like(targets)

    warm = refine(np.broadcast_to(law.constants, (6, 5)), x, targets, weights)

    for i in range(6):
        again = fit_law(
            Points(points.size, points.tokens, points.flops, np.exp(targets[i])), draws=2
        )
        best = huber(log_loss(again.constants, x) - targets[i]).sum()
        assert huber(log_loss(warm[i], x) - targets[i]).sum() <= best * 1.02


def test_one_wrong_trial_does_not_bend_the_law() -> None:
    points = equal_flops(CHINCHILLA, BUDGETS, SIZES, noise=0.0005)
    wrong = points.loss.copy()
    wrong[10] *= 1.1

    law = fit_law(Points(points.size, points.tokens, points.flops, wrong), draws=10)

    found = law.named(law.constants)
    assert found["alpha"] == pytest.approx(CHINCHILLA["alpha"], abs=0.02)
    assert found["beta"] == pytest.approx(CHINCHILLA["beta"], abs=0.02)


def test_one_depth_has_a_law_of_its_tokens() -> None:
    tokens = np.geomspace(1e9, 1e11, 6)
    points = Points(np.full(6, 1e8), tokens, 6e8 * tokens, 2.0 + 410.7 / tokens**0.28)

    law = fit_law(points, has_size=False, draws=10)

    assert law.named(law.constants)["beta"] == pytest.approx(0.28, abs=1e-3)
    assert law.loss(np.array([1e8]), np.array([1e12])) == pytest.approx(
        2.0 + 410.7 / 1e12**0.28, 1e-4
    )


def test_many_trials_are_drawn_anew_and_few_are_not() -> None:
    few = draw_trials(np.zeros(39), np.zeros(39), noise=0.01, p=5, draws=50)
    many = draw_trials(np.zeros(40), np.zeros(40), noise=0.01, p=5, draws=50)

    assert np.all(few[1] == 1)
    assert few[0].std() == pytest.approx(0.01, rel=0.2)
    assert np.all(many[0] == 0)
    assert np.all(many[1].sum(axis=1) == 40)
    assert many[1].max() > 1


def test_a_run_scatters_around_the_law_more_than_the_law_is_unsure() -> None:
    points = equal_flops(CHINCHILLA, BUDGETS, SIZES, noise=0.005)
    law = fit_law(points)
    size, tokens = np.array([3e8]), np.array([1e10])

    of_the_law = law.loss_draws(size, tokens).std()
    of_a_run = law.loss_draws(size, tokens, of_a_run=True).std()

    assert of_a_run > 1.5 * of_the_law
    true = loss_of(CHINCHILLA, size, tokens)[0]
    assert of_a_run == pytest.approx(0.005 * true, rel=0.3)


@pytest.mark.parametrize("kind", ["flops", "ratios"])
def test_the_true_best_size_is_mostly_inside_its_interval(kind: str) -> None:
    inside_size, inside_tokens = coverage(kind, noise=0.003, num_draws=8)

    # Of 8 draws at 90 % fewer than 5 come once in 200 times; the seeds are fixed.
    assert inside_size >= 5
    assert inside_tokens >= 5


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.001, 0.004])
@pytest.mark.parametrize("kind", ["flops", "ratios"])
def test_the_true_best_size_is_inside_in_80_of_100_draws(kind: str, noise: float) -> None:
    inside_size, inside_tokens = coverage(kind, noise=noise, num_draws=100)

    assert (inside_size >= 80, inside_tokens >= 80) == (True, True), (inside_size, inside_tokens)
