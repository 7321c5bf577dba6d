import json
import math
import random
import statistics

import pytest

from nanoray.data.plan import Cursor
from nanoray.train.guard import LEAST_NORMS, POISON_VARIABLE, WINDOW, StepGuard, poison

USUAL_LOSS = 3.0


def fed(norms: list[float], sigmas: float | None = 6.0) -> StepGuard:
    """Give a guard that has seen some norms."""
    guard = StepGuard(sigmas)
    for norm in norms:
        guard.judge(USUAL_LOSS, norm)
    return guard


def lognormal(count: int, deviation: float, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [math.exp(rng.gauss(0.0, deviation)) for _ in range(count)]


@pytest.mark.parametrize("deviation", [0.2, 0.5])
def test_the_limit_is_six_deviations_above_the_mean_of_the_last_128_logarithms(deviation):
    norms = lognormal(300, deviation)

    guard = fed(norms)

    logs = [math.log(norm) for norm in norms[-WINDOW:]]
    limit = math.exp(statistics.mean(logs) + 6 * statistics.pstdev(logs))
    assert guard.skipped == 0
    assert guard.judge(USUAL_LOSS, limit * 0.999) is None
    assert fed(norms).judge(USUAL_LOSS, limit * 1.001) is not None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_from_the_first_step_on_and_not_remembered(bad):
    guard = StepGuard()

    assert guard.judge(USUAL_LOSS, bad) == f"the gradient norm is {bad}"
    assert guard.judge(bad, 1.0) == f"the loss is {bad}"

    assert (guard.skipped, guard.in_a_row, list(guard.log_norms)) == (2, 2, [])


def test_nothing_finite_is_skipped_before_enough_norms_are_known():
    guard = fed([1.0] * (LEAST_NORMS - 1))

    first, second = guard.judge(USUAL_LOSS, 1e6), guard.judge(USUAL_LOSS, 1e30)

    assert first is None
    assert second is not None


def test_norms_that_are_nearly_equal_may_still_rise_by_four_fifths():
    norms = [1.0] * WINDOW

    passed, skipped = fed(norms).judge(USUAL_LOSS, 1.8), fed(norms).judge(USUAL_LOSS, 1.9)

    assert passed is None
    assert skipped == "the gradient norm is 1.9 and at most 1.822 is usual"


def test_a_guard_without_a_limit_skips_only_what_is_not_finite():
    guard = fed([1.0] * WINDOW, sigmas=None)

    assert guard.judge(USUAL_LOSS, 1e30) is None
    assert guard.judge(USUAL_LOSS, math.inf) is not None


@pytest.mark.parametrize("deviation", [0.05, 0.3, 0.6])
def test_norms_of_one_distribution_are_never_skipped(deviation):
    guard = fed(lognormal(100_000, deviation))

    assert guard.skipped == 0


@pytest.mark.parametrize("halves_in", [20, 100, 1000])
def test_norms_that_fall_or_rise_slowly_are_never_skipped(halves_in):
    noise = lognormal(500, 0.1)
    falling = [x * 2 ** (-step / halves_in) for step, x in enumerate(noise)]

    assert fed(falling).skipped == 0
    assert fed(falling[::-1]).skipped == 0


def test_a_spike_does_not_open_the_door_for_the_next_one():
    guard = fed(lognormal(WINDOW, 0.2))

    problems = [guard.judge(USUAL_LOSS, 1e6) for _ in range(50)]

    assert None not in problems
    assert (guard.skipped, guard.in_a_row) == (50, 50)


def test_skipped_norms_do_not_move_the_limit():
    guard = fed(lognormal(WINDOW, 0.2))
    before = guard.limit()

    for norm in (1e6, math.nan, math.inf, 1e3):
        guard.judge(USUAL_LOSS, norm)

    assert guard.limit() == before


def test_the_same_norms_get_the_same_verdicts_after_a_restart():
    norms = lognormal(400, 0.3)
    norms[200:203] = [1e6, math.inf, 50.0]
    whole, first = StepGuard(), fed(norms[:202])
    verdicts = [whole.judge(USUAL_LOSS, norm) for norm in norms]

    again = StepGuard()
    again.load(json.loads(json.dumps(first.to_json())))

    assert again.in_a_row == 2
    assert [again.judge(USUAL_LOSS, norm) for norm in norms[202:]] == verdicts[202:]
    assert again.to_json() == whole.to_json()


def test_a_checkpoint_from_before_there_were_guards_begins_with_no_norms():
    guard = fed([1.0] * WINDOW)

    guard.load({})

    assert guard.to_json() == StepGuard().to_json()


def test_only_the_test_variable_poisons_and_only_its_units(monkeypatch):
    assert poison(Cursor(3, 1)) == 1.0

    monkeypatch.setenv(POISON_VARIABLE, "3-4:1e6")

    assert [poison(Cursor(unit, 1)) for unit in range(2, 6)] == [1.0, 1e6, 1e6, 1.0]
