from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.arc import ARC
from tests.evals.local_hub import check_renders, local_hub


@pytest.mark.parametrize(("config", "size"), [("ARC-Easy", 2_376), ("ARC-Challenge", 1_172)])
def test_every_question_renders_and_has_one_right_letter(
    config: Literal["ARC-Easy", "ARC-Challenge"], size: int
) -> None:
    task = ARC(config, "test", local_hub())

    examples = [task.example(index) for index in range(len(task))]

    assert (task.name, task.baseline, len(task)) == (config, 0.25, size)
    assert all(
        [letter for letter in example.choices if task.grade(index, letter).is_correct]
        == [example.messages[-1]["content"]]
        for index, example in enumerate(examples)
    )
    check_renders(task)


def test_the_letters_are_those_of_the_dataset(tmp_path: Path) -> None:
    choices = {"text": ["ice", "water", "steam"], "label": ["1", "2", "3"]}
    row = {"id": "x", "question": "What boils?", "choices": choices, "answerKey": "2"}
    file = tmp_path / "allenai/ai2_arc/ARC-Easy/train.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), file)

    example = ARC("ARC-Easy", "train", str(tmp_path)).example(0)

    assert example.choices == ("1", "2", "3")
    assert example.messages[-1]["content"] == "2"
    assert "- steam=3\n\n" in example.messages[0]["content"]
