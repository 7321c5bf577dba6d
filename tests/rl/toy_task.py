"""A task whose answers a random model sometimes gets right."""

from nanoray.config import InputError
from nanoray.task import Example, Grade


class ToyTask:
    """Question i asks for an answer of an even number of characters; every sixth is very long."""

    name = "toy"
    baseline = 0.5
    sandbox: str | None = None

    def __len__(self) -> int:
        return 12

    def example(self, index: int) -> Example:
        text = f"question {index}" * (20 if index % 6 == 5 else 1)
        return Example(
            ({"role": "user", "content": text}, {"role": "assistant", "content": "an answer"})
        )

    def grade(self, index: int, answer: str) -> Grade:
        return Grade(len(answer) % 2 == 0)


class BrokenTask(ToyTask):
    """Its answers cannot be graded."""

    name = "broken"

    def grade(self, index: int, answer: str) -> Grade:
        raise InputError("This task has no right answers.")
