"""GSM8K: word problems of school arithmetic, reasoned out with a calculator at hand.

The dataset writes each calculation as `<<12/60=0.2>>`. For a model these are calls of its tool,
in parts of the message, and after them the text goes on with the number once more.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from evals.hub import local_files, read_split
from nanoray.config import DataError
from nanoray.task import Example, Grade

CALCULATION = re.compile(r"<<([^>]+)>>")
FINAL_NUMBER = re.compile(r"#### (\-?[0-9\.\,]+)")
"""How an answer gives its result. (nanochat; "#### 5." is not 5, nor "18.00" 18.)"""

Part = Mapping[str, str]


class GSM8K:
    """Problems whose answer ends in `#### number`."""

    name: str = "GSM8K"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(self, split: Literal["train", "test"], hub_dir: str | None = None) -> None:
        columns = ("question", "answer")
        self.rows = read_split("openai/gsm8k", "main", split, hub_dir, columns=columns)
        self.hub_files = local_files("openai/gsm8k", "main", split, hub_dir)

    def __len__(self) -> int:
        """Give the number of problems."""
        return len(self.rows)

    def example(self, index: int) -> Example:
        """Give one problem; the answer is in parts, with calls of the calculator."""
        row = self.rows[index]
        messages = (
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": answer_parts(row["answer"])},
        )
        return Example(messages)

    def grade(self, index: int, answer: str) -> Grade:
        """Compare the number that an answer gives with the right one.

        Raises:
            DataError: the dataset's own answer has none.
        """
        row = self.rows[index]
        expected = final_number(row["answer"])
        if expected is None:
            raise DataError(
                f"GSM8K: the answer to {row['question']!r} has no line '#### number'. Give a "
                "--hub-dir without it."
            )
        return grade_number(answer, expected)


def answer_parts(answer: str) -> list[Part]:
    """Split an answer of the dataset at its calculations: texts, calls and their results.

    What follows the last "=" of a calculation is its result. A text may be empty.
    """
    parts: list[Part] = []
    for index, piece in enumerate(CALCULATION.split(answer)):
        if index % 2 == 0:
            parts.append({"type": "text", "text": piece})
            continue
        expression, _, result = piece.rpartition("=")
        parts.append({"type": "python", "text": expression})
        parts.append({"type": "python_output", "text": result})
    return parts


def answer_text(parts: Sequence[Part]) -> str:
    """Write parts as the dataset does: `answer_text(answer_parts(answer)) == answer`."""
    frames = {"text": "{}", "python": "<<{}=", "python_output": "{}>>"}
    return "".join(frames[part["type"]].format(part["text"]) for part in parts)


def final_number(answer: str) -> str | None:
    """Give the first number after "#### ", without commas; None where there is none."""
    found = FINAL_NUMBER.search(answer)
    return found[1].replace(",", "") if found else None


def grade_number(answer: str, expected: str) -> Grade:
    """Compare the final number of an answer with the right one, as text."""
    number = final_number(answer)
    if number is None:
        return Grade(False, "no '#### number'")
    return Grade(True) if number == expected else Grade(False, "another number")
