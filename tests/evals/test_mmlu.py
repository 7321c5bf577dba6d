from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.mmlu import LETTERS, MMLU
from nanoray.config import DataError
from tests.evals.local_hub import check_renders, local_hub


def write_auxiliary(folder: Path, rows: list[dict[str, object]]) -> None:
    """Write the split to train on, as the hub has it."""
    file = folder / "cais/mmlu/auxiliary_train/train.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_every_question_renders_and_has_one_right_letter() -> None:
    task = MMLU("test", local_hub())

    right = [
        [letter for letter in LETTERS if task.grade(index, letter).is_correct]
        for index in range(0, len(task), 7)
    ]

    assert (task.name, task.baseline, len(task)) == ("MMLU", 0.25, 14_042)
    assert all(len(letters) == 1 for letters in right)
    assert {letters[0] for letters in right} == set(LETTERS)
    check_renders(task, step=5)


def test_rows_to_train_on_are_unwrapped(tmp_path: Path) -> None:
    row = {"question": "2+2?", "subject": "", "choices": ["1", "2", "3", "4"], "answer": 3}
    write_auxiliary(tmp_path, [{"train": row}])

    task = MMLU("auxiliary_train", str(tmp_path))

    assert len(task) == 1
    assert task.example(0).messages[-1]["content"] == "D"
    assert "question: 2+2?\n- 1=A\n" in task.example(0).messages[0]["content"]


def test_rows_that_lack_what_should_be_wrapped_are_refused(tmp_path: Path) -> None:
    write_auxiliary(tmp_path, [{"train": {"question": "2+2?", "answer": 3}}])

    with pytest.raises(DataError, match=r"has no column train\.choices"):
        MMLU("auxiliary_train", str(tmp_path))


@pytest.mark.parametrize("answer", [4, -1])
def test_an_answer_that_is_no_choice_is_told(tmp_path: Path, answer: int) -> None:
    row = {"question": "2+2?", "subject": "", "choices": ["1", "2", "3", "4"], "answer": answer}
    write_auxiliary(tmp_path, [{"train": row}])

    with pytest.raises(DataError, match=f"is {answer}, and must be a number from 0 to 3"):
        MMLU("auxiliary_train", str(tmp_path)).example(0)
