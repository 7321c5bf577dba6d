"""A run that has told nothing for long says so; one that is at work, or has ended, does not."""

from typing import Any

import pytest

from nanoray.ops.silence import silence_of

STEPS = [{"step": step, "time": 1000.0 + 2 * step} for step in range(1, 51)]  # the last one at 1100
BEGUN = [
    {"time": 980.0, "event": "start"},
    {"time": 990.0, "event": "begin"},
    {"time": 1001.0, "event": "account"},
]


def test_a_run_that_has_told_nothing_for_long_says_since_when():
    line = silence_of(STEPS, BEGUN, now=1100 + 47 * 60)

    assert line == "last step 47 min ago; the job has told nothing since"


@pytest.mark.parametrize("now", [1090.0, 1101.0, 1159.0])
def test_nothing_is_said_within_a_minute_of_a_step_nor_where_clocks_differ(now):
    assert silence_of(STEPS, BEGUN, now=now) is None


def test_a_gap_as_that_of_a_validation_is_nothing_unusual():
    after = [{"step": 51, "time": 1400.0}, {"step": 52, "time": 1402.0}]  # five minutes between

    assert silence_of([*STEPS, *after], BEGUN, now=1402 + 890) is None
    assert silence_of([*STEPS, *after], BEGUN, now=1402 + 910) is not None


def test_the_time_of_a_new_start_is_not_taken_for_that_of_a_step():
    again = [{"time": 5000.0, "event": "begin"}, {"time": 5010.0, "event": "account"}]
    steps = [*STEPS, {"step": 51, "time": 5012.0}, {"step": 52, "time": 5014.0}]

    assert silence_of(steps, [*BEGUN, *again], now=5014 + 61) is not None


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ("account", "workers began 20 min ago; the job has told nothing since"),
        (
            "failure",
            "workers failed 20 min ago; the job has told nothing since; it may wait for machines",
        ),
    ],
)
def test_a_start_takes_its_time_and_before_the_first_step_nothing_is_said_of_steps(event, said):
    events = [*BEGUN, {"time": 1500.0, "event": event}]

    assert silence_of([], events, now=1500 + 599) is None
    assert silence_of([], events, now=1500 + 1200) == said
    assert silence_of(STEPS, events, now=1500 + 1200) == f"last step 27 min ago, {said}"


@pytest.mark.parametrize("records", [[], STEPS])
def test_a_run_that_has_ended_or_has_not_begun_is_not_silent(records: list[dict[str, Any]]):
    stopped = {"time": 1200.0, "event": "stop", "why": "done"}

    assert silence_of(records, [*BEGUN, stopped], now=9e9) is None
    assert silence_of([], [], now=9e9) is None
