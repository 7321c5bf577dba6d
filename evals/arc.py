"""ARC: science questions from school, easy ones and those that word statistics do not solve."""

from typing import Literal

from evals.choices import choice_example, grade_letter
from evals.hub import local_files, read_split
from nanoray.task import Example, Grade


class ARC:
    """One of the two sets; most questions have four choices, a few three or five.

    The letters are the dataset's own: A to E, or 1 to 5.
    """

    baseline: float = 0.25
    sandbox: str | None = None

    def __init__(
        self,
        config: Literal["ARC-Easy", "ARC-Challenge"],
        split: Literal["train", "validation", "test"],
        hub_dir: str | None = None,
    ) -> None:
        self.name: str = config
        columns = ("question", "choices", "answerKey")
        self.rows = read_split("allenai/ai2_arc", config, split, hub_dir, columns=columns)
        self.hub_files = local_files("allenai/ai2_arc", config, split, hub_dir)

    def __len__(self) -> int:
        """Give the number of questions."""
        return len(self.rows)

    def example(self, index: int) -> Example:
        """Give one question; the answer is a letter."""
        row = self.rows[index]
        choices = row["choices"]
        return choice_example(row["question"], choices["label"], choices["text"], row["answerKey"])

    def grade(self, index: int, answer: str) -> Grade:
        """Compare a letter with the right one."""
        return grade_letter(self.example(index), answer)
