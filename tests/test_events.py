from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from nanoray.events import FailureHistory, append_event, failure_history, read_events
from nanoray.storage import RunFolder, StageFolder


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StageFolder]:
    yield RunFolder(str(tmp_path) if request.param == "disk" else "memory://events", "r").stage("s")
    if request.param == "bucket":
        fsspec.filesystem("memory").rm("/events", recursive=True)


def test_events_come_back_in_their_order(folder):
    assert read_events(folder) == []

    append_event(folder, "start", time=5.0)
    append_event(folder, "begin", attempt=1, step=0)

    start, begin = read_events(folder)
    assert start == {"time": 5.0, "event": "start"}
    assert begin.items() >= {"event": "begin", "attempt": 1, "step": 0}.items()
    assert begin["time"] > 1e9


def test_a_line_that_a_crash_tore_costs_no_other(tmp_path):
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    append_event(folder, "start")
    with open(folder.path("events.jsonl"), "a") as file:
        file.write('{"time": 3, "eve')

    append_event(folder, "submit")

    assert [event["event"] for event in read_events(folder)] == ["start", "submit"]


def history_of(*events: tuple[float, str] | tuple[float, str, str]) -> FailureHistory:
    keys = ("time", "event", "why")
    return failure_history([dict(zip(keys, event, strict=False)) for event in events])


def test_a_stage_without_events_has_no_failures():
    assert history_of() == FailureHistory(0, 0.0)


def test_each_group_that_follows_another_in_one_job_replaces_a_failed_one():
    history = history_of((0, "start"), (1, "submit"), (2, "begin"), (9, "begin"), (20, "begin"))

    assert history == FailureHistory(2, 20.0)


def test_a_person_who_stops_a_job_is_no_failure_and_the_time_between_is_not_counted():
    history = history_of(
        (0, "start"), (2, "begin"), (10, "stop", "interrupted"), (100, "start"), (102, "begin")
    )

    assert history == FailureHistory(0, 12.0)


def test_a_failure_that_was_told_counts_once():
    again = history_of((0, "start"), (2, "begin"), (5, "failure"), (6, "begin"), (9, "account"))
    gave_up = history_of((0, "start"), (2, "begin"), (5, "failure"), (6, "stop", "RunFailedError"))

    assert again == FailureHistory(1, 9.0)
    assert gave_up == FailureHistory(1, 6.0)


def test_a_job_that_was_killed_or_gave_up_is_a_failure():
    killed = history_of((0, "start"), (2, "begin"), (3, "account"), (100, "start"), (102, "begin"))
    gave_up = history_of((0, "start"), (2, "begin"), (10, "stop", "RunFailedError"))

    assert killed == FailureHistory(1, 5.0)
    assert gave_up == FailureHistory(1, 10.0)
