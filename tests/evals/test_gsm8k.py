from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.gsm8k import GSM8K, answer_parts, answer_text, final_number, grade_number
from nanoray.config import DataError
from nanoray.inference.calculator import calculate
from tests.evals.local_hub import check_renders, local_hub

GOLDEN = "A 12/60 = $<<12/60=0.2>>0.2 x.\n#### 1,010"


def test_calculations_become_calls_of_the_tool() -> None:
    assert answer_parts(GOLDEN) == [
        {"type": "text", "text": "A 12/60 = $"},
        {"type": "python", "text": "12/60"},
        {"type": "python_output", "text": "0.2"},
        {"type": "text", "text": "0.2 x.\n#### 1,010"},
    ]


def test_the_result_of_a_calculation_follows_its_last_equals_sign() -> None:
    parts = answer_parts("<<1=1=1>>")

    assert [part["text"] for part in parts] == ["", "1=1", "1", ""]


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [
        ("#### 1010", True),
        ("x #### 1,010 y", True),
        ("#### 1010 and not #### 7", True),
        ("#### 7 or rather #### 1010", False),
        ("#### 1010.", False),
        ("#### 1010.00", False),
        ("####1010", False),
        ("#### $1010", False),
        ("#### -1010", False),
        ("1010", False),
        ("", False),
    ],
)
def test_the_first_final_number_is_compared_as_text(answer: str, is_correct: bool) -> None:
    expected = final_number(GOLDEN)

    assert expected == "1010"
    assert grade_number(answer, expected).is_correct == is_correct


def test_a_wrong_answer_is_told_with_the_right_one() -> None:
    assert grade_number("#### 7", "18").note == "another number"
    assert grade_number("seven", "18").note == "no '#### number'"


def test_every_answer_to_train_on_comes_back_from_its_parts() -> None:
    task = GSM8K("train", local_hub())

    answers = [row["answer"] for row in task.rows]

    assert len(task) == 7_473
    assert [answer_text(answer_parts(answer)) for answer in answers] == answers


def test_own_answers_are_right_and_those_of_other_problems_wrong() -> None:
    task = GSM8K("test", local_hub())
    answers = [answer_text(task.example(index).messages[-1]["content"]) for index in range(1_319)]
    numbers = [final_number(answer) for answer in answers]

    own = [task.grade(index, answer).is_correct for index, answer in enumerate(answers)]
    others = [
        task.grade(index, answers[other]).is_correct
        for index in range(len(task))
        for other in [other_problem(numbers, index)]
    ]

    assert (task.name, task.baseline, len(task)) == ("GSM8K", 0.0, 1_319)
    assert all(own)
    assert not any(others)


def other_problem(numbers: list[str | None], index: int) -> int:
    """Find the next problem, around the end, whose number is another."""
    steps = range(1, len(numbers))
    return next(
        other
        for other in ((index + step) % len(numbers) for step in steps)
        if numbers[other] != numbers[index]
    )


def test_our_calculator_agrees_with_the_results_in_the_dataset() -> None:
    task = GSM8K("train", local_hub())

    calls = [
        (call["text"], result["text"])
        for row in task.rows
        for parts in [answer_parts(row["answer"])]
        for call, result in zip(parts[1::3], parts[2::3], strict=True)
    ]

    values = [calculate(expression) for expression, _ in calls]

    # The dataset rounds by hand, to two digits after the point.
    assert len(calls) == 23_716
    assert all(
        value is not None and abs(float(value) - float(result.replace(",", ""))) < 0.01
        for value, (_, result) in zip(values, calls, strict=True)
    )


def test_every_problem_renders() -> None:
    check_renders(GSM8K("test", local_hub()))
    check_renders(GSM8K("train", local_hub()))


def test_a_reference_without_a_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "openai/gsm8k/main/train.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["2+2?"], "answer": ["four"]}), file)
    task = GSM8K("train", str(tmp_path))

    with pytest.raises(DataError, match=r"the answer to '2\+2\?' has no line '#### number'"):
        task.grade(0, "#### 4")
