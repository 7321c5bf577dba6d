import io
import json
import re
from typing import Any

import pytest

from nanoray.logs import FORMAT_VARIABLE
from nanoray.progress import RunDisplay, describe, duration


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what tells rich to be something else than what its stream says."""
    for name in (FORMAT_VARIABLE, "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def values(step: int, **more: Any) -> dict[str, Any]:
    """What the training loop reports of a step."""
    return {
        "step": step,
        "train/loss": 10.0 / step,
        "train/tokens_per_second": 12_345.6,
        "train/mfu": 0.474,
        "train/step_seconds": 2.0,
        **more,
    }


def shown(num_steps: int, log_every: int, *reports: dict[str, Any]) -> list[str]:
    """Give the lines that a display without a terminal prints."""
    stream = io.StringIO()
    display = RunDisplay(num_steps, log_every=log_every, stream=stream)
    for report in reports:
        display.show(report)
    display.close()
    return stream.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_every_so_many_steps_and_at_the_end() -> None:
    lines = shown(25, 10, *(values(step) for step in range(1, 26)))

    assert [re.findall(r"step (\d+)/25", line) for line in lines] == [["10"], ["20"], ["25"]]


def test_a_line_tells_time_loss_speed_utilization_and_what_is_left() -> None:
    (line,) = shown(100, 10, values(10))

    assert re.fullmatch(
        r"\d\d:\d\d:\d\d step 10/100  loss 1\.0000  12,346 tok/s  mfu 47\.4 %  3 min left", line
    )


def test_a_validation_of_any_kind_gets_a_line_of_its_own() -> None:
    lines = shown(30, 10, values(15, **{"validation/pass_at_1": 0.8477}))

    (line,) = lines
    assert "step 15/30" in line
    assert "pass@1 0.848" in line


def test_a_validation_gets_a_line_of_its_own_and_the_others_do_not_repeat_it() -> None:
    bpb = {"validation/bits_per_byte": 1.23456}

    lines = shown(100, 10, values(7, **bpb), values(8), values(10))

    assert [re.findall(r"step (\d+)/100", line) for line in lines] == [["7"], ["10"]]
    assert ["bpb 1.2346" in line for line in lines] == [True, False]


@pytest.mark.parametrize("slow", [1, 40])
def test_time_left_follows_the_speed_of_many_steps_not_of_one_that_compiled(slow: int) -> None:
    seconds = {"train/step_seconds": 62.0}

    lines = shown(100, 1, *(values(n, **(seconds if n == slow else {})) for n in range(1, 51)))

    assert lines[9].endswith(f"{duration(90 * 2.0)} left")
    assert lines[-1].endswith(f"{duration(50 * 2.0)} left")


def test_news_are_one_line_and_nothing_in_them_is_markup() -> None:
    stream = io.StringIO()
    display = RunDisplay(10, log_every=1, stream=stream)

    display.log("worker [1/2] in [red]s3://bucket[/red] " + 100 * "long ")

    (line,) = stream.getvalue().splitlines()
    assert re.match(r"\d\d:\d\d:\d\d worker \[1/2\] in \[red\]s3://bucket\[/red\] long", line)


def test_a_terminal_shows_a_bar_that_moves_and_keeps_the_newest_validation() -> None:
    terminal = Terminal()
    display = RunDisplay(100, log_every=10, stream=terminal)

    display.show(values(42, **{"validation/bits_per_byte": 1.5}))
    display.show(values(43))
    display.close()

    text = terminal.getvalue()
    assert "step 0/100" in text
    assert "starting" in text
    assert re.search(r"step 43/100.*loss 0\.2326.*12,346 tok/s.*mfu 47\.4 %.*bpb 1\.5000", text)


def test_news_stand_above_the_bar_and_the_cursor_comes_back() -> None:
    terminal = Terminal()
    display = RunDisplay(100, log_every=10, stream=terminal)

    display.log("saved step 3")
    display.close()

    text = terminal.getvalue()
    assert "saved step 3" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
@pytest.mark.parametrize(
    "missing",
    [
        {"step": 3},
        {"step": 3, "train/loss": 2.0},
        {"step": 3, "train/loss": 2.0, "train/tokens_per_second": 5.0},
        {"step": 3, "train/step_seconds": 1.0},
        {"step": 3, "validation/bits_per_byte": 1.1},
        values(3, **{"train/mfu": None, "validation/bits_per_byte": None}),
        values(3, **{"train/loss": float("nan"), "train/step_seconds": float("inf")}),
    ],
)
def test_a_step_of_which_little_is_known_is_shown_all_the_same(
    kind: type[io.StringIO], missing: dict[str, Any]
) -> None:
    stream = kind()
    display = RunDisplay(3, log_every=1, stream=stream)

    display.show(missing)
    display.close()

    assert "step 3/3" in stream.getvalue()


def test_a_run_that_has_not_made_a_step_is_starting() -> None:
    text = describe({})

    assert text == "starting"


def test_what_is_not_known_is_not_mentioned() -> None:
    text = describe({"train/loss": 2.0})

    assert text == "loss 2.0000"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "2 min"),
        (12 * 60, "12 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1.5 h"),
        (3.4 * 3600, "3.4 h"),
        (47.9 * 3600, "47.9 h"),
        (4.1 * 86400, "4.1 days"),
        (1000 * 86400, "1000.0 days"),
    ],
)
def test_a_duration_is_written_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_cost_so_far_is_told_where_it_is_counted() -> None:
    assert describe(values(10, **{"cost/dollars": 1234.5})).endswith("mfu 47.4 %  $1,234.50")


def test_where_lines_are_json_there_is_no_bar_and_each_line_is_an_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    stream = Terminal()
    display = RunDisplay(10, log_every=10, stream=stream)

    display.log("began again from s3://a:sentinel@bucket [bold] :100:")
    display.show(values(10))
    display.close()

    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["message"] == "began again from s3://***@bucket [bold] :100:"
    assert (first["level"], first["logger"]) == ("INFO", "nanoray.progress")
    assert second["message"].startswith("step 10/10  loss 1.0000")
