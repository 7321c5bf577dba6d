"""An exam: what a model is asked, and which answers were right. Tasks of all kinds become one."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from nanoray.config import InputError
from nanoray.inference.scoring import Likelihood, Question
from nanoray.task import Example, Grade, Task
from nanoray.text.chat import Message

MAX_ANSWER_TOKENS = 512
"""nanochat's; an answer that is longer is cut off there, and graded as it is."""
NO_NUMBERS = Grade(False, "the model gives no finite numbers")
NO_ROOM = Grade(False, "the question does not fit into the context")


class Candidate(Protocol):
    """A model that takes exams."""

    longest: int
    """Most tokens that it can read."""

    def document(self, text: str) -> list[int]:
        """Give the ids of a text that begins a document."""
        ...

    def chat_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Render a conversation without its last message, whose turn is opened.

        Raises:
            InputError: the model knows no conversations.
        """
        ...

    def answer_ids(self, messages: Sequence[Message], answer: str) -> list[int]:
        """Give the ids of an answer as they stand behind `chat_prompt` of the same conversation.

        Raises:
            InputError: it has none of its own there.
        """
        ...

    def score(self, questions: Sequence[Question]) -> list[list[Likelihood]]:
        """Say how likely all options of all questions are."""
        ...

    def write(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str | None]:
        """Continue prompts greedily; None for a prompt that leaves no room."""
        ...


class Exam(Protocol):
    """Questions that one task asks."""

    name: str
    group: str
    """core or chat."""
    baseline: float
    """Share of right answers that guessing gives."""
    sandbox: str | None
    """Isolation of programs that the model writes; None where it writes none."""

    def __len__(self) -> int:
        """Give the number of questions."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash all that is asked: results of other questions are other results."""
        ...

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        """Let a model answer some of the questions; the grades do not depend on the others."""
        ...


class TaskExam:
    """The first examples of a task, all of them if none is said."""

    def __init__(self, task: Task, most: int | None = None) -> None:
        self.task, self.name, self.baseline = task, task.name, task.baseline
        self.group, self.sandbox = "chat", task.sandbox
        self.size = min(len(task), most or len(task))

    @property
    def fingerprint(self) -> str:
        """Hash all examples, their answers included, and what else decides their grades."""
        examples = [self.task.example(index) for index in range(self.size)]
        asked: list[object] = [[list(e.messages), e.choices] for e in examples]
        tests: Callable[[int], object] | None = getattr(self.task, "tests", None)
        return hash_questions([asked, list(map(tests, range(self.size)))] if tests else asked)

    def __len__(self) -> int:
        """Give the number of questions."""
        return self.size


class ChoiceExam(TaskExam):
    """A task whose answer is one of some letters: the likeliest letter is the model's answer."""

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        """Answer by the likeliest letter after the opened turn.

        Raises:
            InputError: a letter is not one token.
        """
        examples = [self.task.example(index) for index in indices]
        questions = [self.question(candidate, example) for example in examples]
        grades = []
        fitting = [q for q in questions if q.longest <= candidate.longest]
        scored = iter(candidate.score(fitting))
        for index, example, question in zip(indices, examples, questions, strict=True):
            if question.longest > candidate.longest:
                grades.append(NO_ROOM)
                continue
            values = [option.logprobs[0] for option in next(scored)]
            if not all(map(math.isfinite, values)):
                grades.append(NO_NUMBERS)
                continue
            chosen = example.choices[values.index(max(values))]
            grades.append(self.task.grade(index, chosen))
        return grades

    def question(self, candidate: Candidate, example: Example) -> Question:
        """Ask for one of the letters."""
        asked = example.messages
        options = [candidate.answer_ids(asked, letter) for letter in example.choices]
        for letter, ids in zip(example.choices, options, strict=True):
            if len(ids) != 1:
                raise InputError(
                    f"The answer {letter!r} of {self.name} is {len(ids)} tokens in this vocabulary "
                    "and must be one. Leave the task out."
                )
        return Question(candidate.chat_prompt(asked), options)


class WritingExam(TaskExam):
    """A task whose answer is written freely."""

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        """Let the model write greedily, and grade what it wrote."""
        prompts = [candidate.chat_prompt(self.task.example(i).messages) for i in indices]
        written = candidate.write(prompts, MAX_ANSWER_TOKENS)
        return [
            NO_ROOM if answer is None else self.task.grade(index, answer)
            for index, answer in zip(indices, written, strict=True)
        ]


def exam_of(task: Task, most: int | None = None) -> Exam:
    """Give the exam that a task's examples ask for, of `most` questions at most."""
    return (ChoiceExam if task.example(0).choices else WritingExam)(task, most)


def hash_questions(content: object) -> str:
    """Hash what is asked, as JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def mean_nats(logprobs: Iterable[float]) -> float:
    """Average losses; of none it is not a number, which `min` passes over unless it comes first."""
    values = list(logprobs)
    return -math.fsum(values) / len(values) if values else math.nan
