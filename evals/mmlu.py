"""MMLU: exam questions from 57 subjects, each with four choices."""

from typing import Literal

from evals.choices import choice_example, grade_letter
from evals.hub import local_files, read_split
from nanoray.config import DataError
from nanoray.task import Example, Grade

LETTERS = ("A", "B", "C", "D")
COLUMNS = ("question", "choices", "answer")


class MMLU:
    """All subjects together.

    The split to train on is `auxiliary_train`, which was gathered from other exams. On the hub it
    is a configuration of its own, each of whose rows is wrapped in a column `train`.
    """

    name: str = "MMLU"
    baseline: float = 0.25
    sandbox: str | None = None

    def __init__(
        self,
        split: Literal["auxiliary_train", "dev", "validation", "test"],
        hub_dir: str | None = None,
    ) -> None:
        if split == "auxiliary_train":
            columns = [f"train.{column}" for column in COLUMNS]
            wrapped = read_split("cais/mmlu", split, "train", hub_dir, columns=columns)
            self.rows = [row["train"] for row in wrapped]
            self.hub_files = local_files("cais/mmlu", split, "train", hub_dir)
        else:
            self.rows = read_split("cais/mmlu", "all", split, hub_dir, columns=COLUMNS)
            self.hub_files = local_files("cais/mmlu", "all", split, hub_dir)

    def __len__(self) -> int:
        """Give the number of questions."""
        return len(self.rows)

    def example(self, index: int) -> Example:
        """Give one question; the answer is a letter."""
        row = self.rows[index]
        if row["answer"] not in range(len(LETTERS)):
            raise DataError(
                f"MMLU: the answer to {row['question']!r} is {row['answer']!r}, and must be a "
                f"number from 0 to {len(LETTERS) - 1}. Give another --hub-dir."
            )
        return choice_example(row["question"], LETTERS, row["choices"], LETTERS[row["answer"]])

    def grade(self, index: int, answer: str) -> Grade:
        """Compare a letter with the right one."""
        return grade_letter(self.example(index), answer)
