import logging
import math

import pytest

from nanoray.events import FailureHistory
from nanoray.train.save_interval import (
    MOST_SECONDS,
    SaveConfig,
    SaveInterval,
    seconds_between_failures,
    young_daly_seconds,
)

HOUR = 3600.0


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def lost_share(interval: float, stall: float, between_failures: float) -> float:
    """Give the part of the time lost to stalls, and to half an interval for each failure."""
    return stall / interval + interval / 2 / between_failures


@pytest.mark.parametrize(("stall", "between"), [(2.0, 8 * HOUR), (0.5, HOUR), (10.0, 24 * HOUR)])
def test_no_other_interval_loses_less(stall, between):
    chosen = young_daly_seconds(stall, between)

    least = min(lost_share(seconds, stall, between) for seconds in range(1, 3 * 3600))
    assert lost_share(chosen, stall, between) == pytest.approx(least, rel=1e-4)


def test_the_interval_stays_between_a_minute_and_an_hour():
    assert young_daly_seconds(1e-6, HOUR) == 60
    assert young_daly_seconds(1e6, HOUR) == 3600


def test_a_run_of_llama_3s_size_expects_its_failures_and_those_of_any_job():
    expected = seconds_between_failures(FailureHistory(), 16_384)

    per_hour = 419 / (54 * 24) + 1 / 8
    assert expected == pytest.approx(HOUR / per_hour)


def test_what_a_run_lives_through_outweighs_the_prior():
    often = seconds_between_failures(FailureHistory(99, 99 * HOUR), 8)
    never = seconds_between_failures(FailureHistory(0, 1000 * HOUR), 8)

    assert often == pytest.approx(HOUR, rel=0.1)
    assert never == pytest.approx(1000 * HOUR, rel=0.01)


def test_steps_that_were_asked_for_are_saved_whatever_the_time():
    interval = SaveInterval(SaveConfig(every_steps=10), 1, step=20, clock=Clock())

    due = []
    for step in range(21, 51):
        if interval.is_due(step):
            due.append(step)
            interval.saved(step, 100.0)

    assert due == [30, 40, 50]


def test_single_steps_may_be_asked_for():
    interval = SaveInterval(SaveConfig(every_steps=100, at_steps=(7, 12)), 1, 0, clock=Clock())

    due = [step for step in range(1, 100) if interval.is_due(step)]

    assert due == [7, 12]


def test_a_due_step_that_could_not_be_saved_stays_due():
    interval = SaveInterval(SaveConfig(every_steps=10), 1, step=0, clock=Clock())

    due = [interval.is_due(step) for step in (9, 10, 11, 12)]
    interval.saved(12, 1.0)

    assert due == [False, True, True, True]
    assert [interval.is_due(step) for step in (13, 19, 20)] == [False, False, True]


def test_minutes_that_were_asked_for_pass_between_two_saves():
    clock = Clock()
    interval = SaveInterval(SaveConfig(every_seconds=600), 1, step=0, clock=clock)

    clock.now += 599
    early = interval.is_due(1)
    clock.now += 1
    late = interval.is_due(2)
    interval.saved(2, 1000.0)

    assert (early, late, interval.is_due(3)) == (False, True, False)


def test_steps_and_minutes_may_both_be_asked_for():
    clock = Clock()
    interval = SaveInterval(SaveConfig(every_steps=10, every_seconds=60), 1, step=0, clock=clock)

    by_step = interval.is_due(10)
    clock.now += 60
    by_time = interval.is_due(1)

    assert by_step
    assert by_time


def test_without_a_wish_the_first_save_measures_and_the_next_ones_follow_the_formula(caplog):
    caplog.set_level(logging.INFO)
    clock = Clock()
    interval = SaveInterval(SaveConfig(history=FailureHistory(1, 2 * HOUR)), 8, 0, clock)

    clock.now += 60
    first = interval.is_due(1)
    interval.saved(1, 3.0)

    between = seconds_between_failures(FailureHistory(1, 2 * HOUR + 60), 8)
    assert first
    assert interval.seconds == pytest.approx(math.sqrt(2 * 3.0 * between))
    assert "saving every" in caplog.text
    assert "(seen: 1 in 2.0 h)" in caplog.text


def test_a_choice_is_logged_again_only_when_it_has_changed_by_much(caplog):
    caplog.set_level(logging.INFO)
    interval = SaveInterval(SaveConfig(), 8, 0, clock=Clock())

    for step, stall in enumerate([1.0, 1.1, 0.9, 1.0, 1.05] + [50.0] * 5):
        interval.saved(step, stall)

    assert caplog.text.count("saving every") == 2
    assert interval.seconds == pytest.approx(min(MOST_SECONDS, math.sqrt(100 * 8 * HOUR)), rel=0.01)


def test_one_long_stall_is_not_believed():
    interval = SaveInterval(SaveConfig(), 8, 0, clock=Clock())

    for step, stall in enumerate([500.0, 1.0, 1.0]):
        interval.saved(step, stall)

    assert interval.seconds == pytest.approx(math.sqrt(2 * 8 * HOUR), rel=0.01)
