"""CORE: 22 tasks that a base model answers by what it finds likely, after some solved examples.

Prompts, draws and scores are nanochat's (tests/evals/test_core.py has its golden values); the
tasks and the centring come from DCLM (Li et al. 2024).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals.bundle import CoreTask
from evals.exam import NO_NUMBERS, Candidate, hash_questions, mean_nats
from nanoray.config import DataError
from nanoray.inference.scoring import Likelihood, Question
from nanoray.task import Grade

SHUFFLE_SEED = 1337
"""Of the order of each task's examples."""
FEW_SHOT_SEED = 1234
"""Plus the number of the question."""
CROPPED = "cropped"
"""Note of a question whose beginning did not fit into the context."""

Item = dict[str, Any]  # Any: an example of the bundle


@dataclass(frozen=True)
class Prompt:
    """One of the texts of a question, as ids, and how many of the last ones count."""

    ids: list[int]
    num_scored: int


class CoreExam:
    """One task of the bundle."""

    def __init__(self, task: CoreTask, items: list[Item]) -> None:
        """Take the examples of a task, in the order in which they are asked.

        Raises:
            DataError: there are not enough of them for the solved ones before each question.
        """
        self.task, self.items = task, items
        self.name, self.baseline = task.label, task.baseline
        self.group = "core"
        self.sandbox: str | None = None
        if task.num_shots > len(items) - 1:
            raise DataError(
                f"{task.label} shows {task.num_shots} solved examples before each question, and "
                f"there are {len(items)} in all. Take more of them: a larger --max-per-task."
            )

    @property
    def fingerprint(self) -> str:
        """Hash all examples, and how they are asked."""
        task = self.task
        return hash_questions([task.kind, task.num_shots, task.delimiter, self.items])

    def __len__(self) -> int:
        """Give the number of questions."""
        return len(self.items)

    def take(self, candidate: Candidate, indices: Sequence[int]) -> list[Grade]:
        """Answer by what is likeliest."""
        asked = [self.prompts(candidate, index) for index in indices]
        questions: list[Question] = []
        cropped = []
        for prompts in asked:
            cropped.append(any(len(prompt.ids) > candidate.longest for prompt in prompts))
            questions += ask(prompts, candidate.longest)
        scored = iter(candidate.score(questions))
        grades = []
        for index, prompts, is_cropped in zip(indices, asked, cropped, strict=True):
            options: list[Likelihood] = []
            while len(options) < len(prompts):
                options += next(scored)
            if not all(math.isfinite(x) for option in options for x in option.logprobs):
                grades.append(NO_NUMBERS)
                continue
            right = self.is_right(self.items[index], prompts, options)
            grades.append(Grade(right, CROPPED if is_cropped else ""))
        return grades

    def is_right(self, item: Item, prompts: list[Prompt], options: list[Likelihood]) -> bool:
        """Say whether the model's answer is the right one."""
        if self.task.kind == "language_modeling":
            return options[0].is_greedy
        nats = [
            mean_nats(option.logprobs[max(0, len(option.logprobs) - prompt.num_scored) :])
            for prompt, option in zip(prompts, options, strict=True)
        ]
        return nats.index(min(nats)) == item["gold"]

    def shots(self, index: int) -> list[Item]:
        """Draw the solved examples of a question from all others."""
        others = [i for i in range(len(self.items)) if i != index]
        drawn = random.Random(FEW_SHOT_SEED + index).sample(others, self.task.num_shots)
        return [self.items[i] for i in drawn]

    def texts(self, index: int) -> list[str]:
        """Write the texts of a question: one per option, or one without and one with the answer."""
        item, delimiter = self.items[index], self.task.delimiter
        shots = "".join(f"{self.solved(shot)}\n\n" for shot in self.shots(index))
        if self.task.kind == "multiple_choice":
            return [f"{shots}{item['query']}{delimiter}{choice}" for choice in item["choices"]]
        if self.task.kind == "schema":
            end = f"{delimiter}{item['continuation']}"
            return [f"{shots}{context}{end}" for context in item["context_options"]]
        opened = f"{shots}{item['context'].strip()}{delimiter}"
        return [opened.strip(), f"{opened}{item['continuation']}"]

    def solved(self, item: Item) -> str:
        """Write an example with its answer."""
        if self.task.kind == "multiple_choice":
            return f"{item['query']}{self.task.delimiter}{item['choices'][item['gold']]}"
        if self.task.kind == "schema":
            context = item["context_options"][item["gold"]]
        else:
            context = item["context"].strip()
        return f"{context}{self.task.delimiter}{item['continuation']}"

    def prompts(self, candidate: Candidate, index: int) -> list[Prompt]:
        """Give the texts that are scored, and where: found by comparing tokens, not characters.

        Of multiple choice all that comes after the common beginning counts, of a schema the common
        end, and of language modeling what the answer adds to the text without it.
        """
        rows = [candidate.document(text) for text in self.texts(index)]
        if self.task.kind == "schema":
            shared = common_length([row[::-1] for row in rows])
            return [Prompt(row, min(shared, len(row) - 1)) for row in rows]
        shared = common_length(rows)
        wanted = rows[1:] if self.task.kind == "language_modeling" else rows
        return [Prompt(row, len(row) - shared) for row in wanted]


def common_length(rows: Sequence[Sequence[int]]) -> int:
    """Count the tokens with which all rows begin."""
    length = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def ask(prompts: list[Prompt], longest: int) -> list[Question]:
    """Turn the texts of one question into as few questions to the scorer as can be.

    Texts that fit share what they begin with. One that does not fit loses its beginning, as
    nanochat does it with models that cannot read further, and has nothing to share any more.
    """
    if all(len(prompt.ids) <= longest for prompt in prompts):
        # At least one token must come before those that count.
        shared = common_length([p.ids for p in prompts])
        at = max(1, min(shared, *(len(p.ids) - p.num_scored for p in prompts)))
        return [Question(prompts[0].ids[:at], [p.ids[at:] for p in prompts])]
    questions = []
    for prompt in prompts:
        ids = prompt.ids[-longest:]
        at = max(1, len(ids) - prompt.num_scored)
        questions.append(Question(ids[:at], [ids[at:]]))
    return questions
