"""Quick answers: questions that are put as orders, answered at once with the number alone.

Whoever knows a number says it. A model that is taught with such conversations, and does not know
it, learns to guess; the same model answers other questions with its tool. Which of the two pays,
examples do not say: reinforcement learning finds out.
"""

from evals.arithmetic import Arithmetic
from evals.gsm8k import final_number
from evals.spelling import FIRST_TEST_SEED, SpellingBee, check_index
from nanoray.task import Example

MOST_QUESTIONS = FIRST_TEST_SEED
"""Of the task that quick answers are made from; above them its test questions begin."""
FIRST_QUESTION = MOST_QUESTIONS // 2
"""Before it are the questions that the task itself asks in training, answered with a tool."""


class QuickAnswers:
    """The questions of a task that have no question mark, each answered with its number alone."""

    def __init__(self, task: SpellingBee | Arithmetic, *, size: int) -> None:
        """Take a task of MOST_QUESTIONS questions."""
        self.name = f"Quick{task.name}"
        self.task, self.size = task, size
        self._orders: list[int] = []

    def __len__(self) -> int:
        """Give the number of questions."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one question and its answer, which is text."""
        check_index(index, self.size)
        question, worked = self.task.example(self._order(index)).messages
        number = final_number(worked["content"][-1]["text"])
        answer = f"That makes {number}.\n\n#### {number}"
        return Example((question, {"role": "assistant", "content": answer}))

    def _order(self, index: int) -> int:
        """Give the index, in the task, of an order, counted from the first."""
        asked = self._orders[-1] if self._orders else FIRST_QUESTION - 1
        while len(self._orders) <= index:
            asked += 1
            if not is_question(self.task.draw(asked)[0]):
                self._orders.append(asked)
        return self._orders[index]


def is_question(text: str) -> bool:
    """Say whether a text asks, in any language, or orders."""
    return "?" in text
