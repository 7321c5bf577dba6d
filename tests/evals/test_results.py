"""Reports: kept, merged, tabulated and compared."""

import dataclasses
import json
from typing import Any

import pytest

from evals.results import NOT_TOLD, EvalReport, TaskResult, compare, count_notes
from nanoray.config import InputError

SUITES = {"core": ("one", "two"), "chat": ("Chat",)}


def result(name: str, outcomes: str, *, group: str = "core", available: int = 0) -> TaskResult:
    return TaskResult(
        name=name,
        group=group,
        suite=SUITES[group],
        questions=f"{name} {len(outcomes)}",
        source="bundle a" if group == "core" else "hub",
        asked_at=0.0,
        sandbox=None,
        baseline=0.25,
        outcomes=outcomes,
        num_available=available or len(outcomes),
        notes={},
        seconds=2.0,
        examples_per_second=3.0,
    )


def report(*tasks: TaskResult, **fields: Any) -> EvalReport:
    values: dict[str, Any] = {
        "model": "r/pretrain@10",
        "weights": "ab" * 32,
        "step": 10,
        "settings": {"dtype": "float32"},
        **fields,
    }
    return EvalReport(tasks=tasks, **values)


ONE, TWO = result("one", "1110"), result("two", "0001")


def test_core_is_the_mean_of_centred_accuracies_and_needs_every_task() -> None:
    whole, half = report(ONE, TWO), report(ONE)

    mean = whole.mean("core")

    assert mean is not None
    assert mean.value == pytest.approx(((0.75 - 0.25) / 0.75 + 0) / 2)
    assert mean.interval[0] < mean.value < mean.interval[1]
    assert half.mean("core") is None
    assert whole.mean("chat") is None


def test_a_report_is_the_same_after_json() -> None:
    before = report(ONE, dataclasses.replace(TWO, notes={"cropped": 2}, sandbox="strong"))

    assert EvalReport.from_json(json.loads(json.dumps(before.to_json()))) == before


def test_a_result_that_does_not_say_where_it_comes_from_is_read_too() -> None:
    saved = {
        key: value for key, value in ONE.to_json().items() if key not in ("source", "asked_at")
    }

    assert TaskResult.from_json(saved) == dataclasses.replace(ONE, source=NOT_TOLD)


def test_the_table_of_core_is_that_of_nanochat() -> None:
    table = report(ONE, TWO).core_csv()

    assert table == (
        "Task                               , Accuracy  , Centered  \n"
        "one                                , 0.750000  , 0.666667  \n"
        "two                                , 0.250000  , 0.000000  \n"
        "CORE                               ,           , 0.333333  \n"
    )
    assert report(ONE).core_csv() is None


def test_a_sample_is_called_one_and_what_is_missing_is_named() -> None:
    sample = report(result("one", "10", available=1000), TWO).table()
    partial = report(ONE).table()

    assert "2 of 1,000, a sample" in sample
    assert sample.splitlines()[-1].endswith("of samples")
    assert partial.splitlines()[-1] == "No CORE: without two."


def test_the_table_shows_few_notes_and_the_sandbox() -> None:
    notes = {"a": 4, "b": 3, "c": 2, "d": 1}

    table = report(dataclasses.replace(ONE, notes=notes, sandbox="strong")).table()

    assert "(4 a, 3 b, 2 c, strong sandbox)" in table
    assert table.startswith("r/pretrain@10, float32\n")


def test_two_models_are_compared_by_the_same_questions() -> None:
    better = report(result("one", "1111"), TWO, model="r/sft@5")

    lines = compare(report(ONE, TWO), better).splitlines()

    assert lines[0].endswith("r/pretrain@10")
    assert lines[3].split()[:4] == ["one", "0.7500", "1.0000", "+0.2500"]
    # z^2 / (n + z^2) with n = 4: equal answers to so few questions prove little.
    assert lines[4].split()[3:] == ["+0.0000", "-0.4899", "-", "+0.4899", "4"]
    assert lines[5].split()[:4] == ["CORE", "0.3333", "0.5000", "+0.1667"]


def test_what_was_not_asked_in_the_same_way_is_not_compared() -> None:
    with pytest.raises(InputError, match="have no results of the same questions"):
        compare(report(ONE), report(result("one", "11")))


def test_notes_are_counted() -> None:
    assert count_notes(["a", "", "b", "b"]) == {"b": 2, "a": 1}
