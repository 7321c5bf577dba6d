from copy import copy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evals.exam import exam_of
from evals.humaneval import HumanEval, leading_imports, program
from nanoray.config import DataError
from tests.evals.local_hub import check_renders, local_hub

PROMPT = """
# what a list is
from typing import List

import math
def area(sides: List[float]) -> float:
    \"\"\"Give the area.

    import nothing
    \"\"\"
import os
"""
CODE = "def area(sides):\n    return math.prod(sides)"
HEAD = "from typing import List\nimport math\n\n"


@pytest.fixture(scope="module")
def task() -> HumanEval:
    return HumanEval(local_hub())


def test_imports_at_the_top_of_a_prompt_are_found() -> None:
    assert leading_imports(PROMPT) == "from typing import List\nimport math"
    assert leading_imports("def f():\n    import os\n") == ""
    assert leading_imports("FIX = 1\nimport os\n") == ""


@pytest.mark.parametrize(
    "answer",
    [
        f"  \n{CODE}\n\n",
        f"```python\n{CODE}\n```",
        f"```\n{CODE}\n```",
        f"Here it is:\n\n```python\n{CODE}\n```\nAnd its use:\n```python\narea([1])\n```\n",
    ],
)
def test_the_first_block_of_code_is_the_program_or_all_of_the_answer(answer: str) -> None:
    assert program(PROMPT, answer) == HEAD + CODE


def test_a_program_needs_no_imports() -> None:
    assert program("def f():\n", "def f(): return 1") == "def f(): return 1"


def test_the_question_is_the_prompt_and_the_answer_the_whole_function(task: HumanEval) -> None:
    row = task.rows[0]

    question, answer = task.example(0).messages

    assert (task.name, task.baseline, len(task)) == ("HumanEval", 0.0, 164)
    assert question["content"] == row["prompt"]
    assert answer["content"] == row["prompt"] + "\n" + row["canonical_solution"]
    check_renders(task)


def test_own_solutions_are_right_and_others_wrong(task: HumanEval) -> None:
    answers = [task.example(index).messages[1]["content"] for index in range(4)]

    own = [task.grade(index, answer) for index, answer in enumerate(answers)]
    other = [task.grade(index, answers[index - 1]) for index in range(4)]

    assert [grade.note for grade in own if not grade.is_correct] == []
    assert not any(grade.is_correct for grade in other)


def test_tests_that_need_a_helper_of_the_prompt_find_it(task: HumanEval) -> None:
    names = {row["entry_point"]: index for index, row in enumerate(task.rows)}

    for name in ("decode_cyclic", "decode_shift", "find_zero"):
        index = names[name]
        assert task.grade(index, task.example(index).messages[1]["content"]).is_correct


def test_an_answer_without_the_function_is_wrong_and_told_why(task: HumanEval) -> None:
    for answer in ("", "I cannot.", "```python\nx = 1\n```", "def other():\n    pass\n"):
        grade = task.grade(0, answer)

        assert not grade.is_correct
        assert grade.note


@pytest.mark.slow
def test_all_solutions_of_the_dataset_are_right_and_others_wrong(task: HumanEval) -> None:
    answers = [task.example(index).messages[1]["content"] for index in range(len(task))]

    own = [task.grade(index, answer) for index, answer in enumerate(answers)]
    other = [task.grade(index, answers[index - 1]) for index in range(len(task))]

    assert [(i, grade.note) for i, grade in enumerate(own) if not grade.is_correct] == []
    assert not any(grade.is_correct for grade in other)


def test_a_dataset_without_tests_is_refused(task: HumanEval, tmp_path: Path) -> None:
    place = "openai/openai_humaneval/openai_humaneval/test.parquet"
    table = pq.read_table(Path(local_hub()) / place).drop_columns("test")
    (tmp_path / place).parent.mkdir(parents=True)
    pq.write_table(table, tmp_path / place)

    with pytest.raises(DataError, match="has no column test; its columns are task_id, prompt"):
        HumanEval(str(tmp_path))


def test_other_tests_are_other_questions(task: HumanEval) -> None:
    other = copy(task)
    other.rows = [{**task.rows[0], "test": "def check(candidate): pass"}, *task.rows[1:]]

    assert exam_of(task, 3).fingerprint == exam_of(copy(task), 3).fingerprint
    assert exam_of(task, 3).fingerprint != exam_of(other, 3).fingerprint
