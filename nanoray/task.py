"""A task: questions with known answers, to learn from, be measured by, and be rewarded for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol


@dataclass(frozen=True)
class Example:
    """One question, and the answer that it should get."""

    messages: Sequence[Mapping[str, Any]]  # Any: content is a string, or a list of parts
    """A conversation; its last message is the answer."""
    choices: tuple[str, ...] = ()
    """If given, the answer is one of these; else it is written freely."""


@dataclass(frozen=True)
class Grade:
    """What an answer is worth."""

    is_correct: bool
    note: str = ""
    """Why it is not correct, where that is worth telling."""


class Lessons(Protocol):
    """A list of examples to learn from."""

    name: str

    def __len__(self) -> int:
        """Give the number of examples."""
        ...

    def example(self, index: int) -> Example:
        """Give one example."""
        ...


class Task(Lessons, Protocol):
    """A list of examples, and how an answer to one of them is graded."""

    baseline: float
    """Share of correct answers that guessing gives."""
    sandbox: str | None
    """How answers that are programs are isolated when they run; None where none are."""

    def grade(self, index: int, answer: str) -> Grade:
        """Grade an answer to an example: what the assistant wrote, or its choice."""
        ...


class JoinedTask:
    """Several tasks as one, their examples one after the other."""

    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.name = "+".join(task.name for task in tasks)

    def __len__(self) -> int:
        """Give the number of examples of all."""
        return sum(map(len, self.tasks))

    def example(self, index: int) -> Example:
        """Give one example."""
        task, inner = self._find(index)
        return task.example(inner)

    def grade(self, index: int, answer: str) -> Grade:
        """Let the example's own task grade an answer."""
        task, inner = self._find(index)
        return task.grade(inner, answer)

    def in_turn(self) -> "ChosenTask":
        """Give all examples with the tasks taking turns: of any number, each has its share."""
        places = [
            (inner, number) for number, task in enumerate(self.tasks) for inner in range(len(task))
        ]
        ends = list(accumulate(map(len, self.tasks), initial=0))
        return ChosenTask(self, [ends[number] + inner for inner, number in sorted(places)])

    def _find(self, index: int) -> tuple[Task, int]:
        """Give the task of an example, and its index there."""
        for task in self.tasks:
            if 0 <= index < len(task):
                return task, index
            index -= len(task)
        raise IndexError(f"no such example of {self.name}")


class ChosenTask:
    """Some examples of another task."""

    def __init__(self, task: Task, indices: Sequence[int]) -> None:
        self.task, self.indices = task, indices
        self.name, self.baseline, self.sandbox = task.name, task.baseline, task.sandbox

    def __len__(self) -> int:
        """Give the number of examples."""
        return len(self.indices)

    def example(self, index: int) -> Example:
        """Give one example."""
        return self.task.example(self.indices[index])

    def grade(self, index: int, answer: str) -> Grade:
        """Grade an answer to an example."""
        return self.task.grade(self.indices[index], answer)
