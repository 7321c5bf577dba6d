from typing import Literal

import pytest

from evals.arithmetic import Arithmetic
from evals.quick import FIRST_QUESTION, MOST_QUESTIONS, QuickAnswers
from evals.spelling import SpellingBee
from evals.words import embedded_words

Split = Literal["train", "test"]
NUM_QUESTIONS = 300


def quick(split: Split, name: str) -> QuickAnswers:
    tasks: dict[str, SpellingBee | Arithmetic] = {
        "spelling": SpellingBee(embedded_words(), split, size=MOST_QUESTIONS),
        "arithmetic": Arithmetic(split, size=MOST_QUESTIONS),
    }
    return QuickAnswers(tasks[name], size=NUM_QUESTIONS)


@pytest.mark.parametrize("name", ["spelling", "arithmetic"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_order_is_answered_with_the_number_that_its_task_wants(
    split: Split, name: str
) -> None:
    lessons = quick(split, name)
    asked = range(FIRST_QUESTION, FIRST_QUESTION + 4 * NUM_QUESTIONS)
    orders = [index for index in asked if "?" not in lessons.task.draw(index)[0]][:NUM_QUESTIONS]

    examples = [lessons.example(index).messages for index in range(NUM_QUESTIONS)]

    for index, (order, answer) in zip(orders, examples, strict=True):
        assert order["content"] == lessons.task.draw(index)[0]
        assert lessons.task.grade(index, answer["content"]).is_correct


def test_an_example_depends_on_its_index_alone() -> None:
    in_turn, at_once = quick("train", "spelling"), quick("train", "spelling")

    examples = [in_turn.example(index) for index in range(50)]

    assert at_once.example(49) == examples[49]
    assert at_once.example(3) == examples[3]
    with pytest.raises(IndexError):
        at_once.example(NUM_QUESTIONS)
