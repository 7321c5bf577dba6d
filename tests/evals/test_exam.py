"""Tasks as exams: letters by their likelihood, and answers written by the engine."""

import math
from collections.abc import Sequence

import pytest

from evals.candidates import TrainedModel
from evals.exam import NO_ROOM, ChoiceExam, WritingExam, exam_of, mean_nats
from nanoray.config import InputError
from nanoray.task import Example, Grade
from nanoray.text.tokenizer import Tokenizer
from tests.chat_run import ANSWERS, WEATHER, chat_model, tokenizer
from tests.support import tiny_gpt

BYTES = Tokenizer([])


class Quiz:
    """Questions with a given answer, and choices where there are any."""

    name = "quiz"
    baseline = 0.0
    sandbox: str | None = None

    def __init__(self, pairs: Sequence[tuple[str, str]], choices: tuple[str, ...] = ()) -> None:
        self.pairs, self.choices = pairs, choices

    def __len__(self) -> int:
        return len(self.pairs)

    def example(self, index: int) -> Example:
        question, answer = self.pairs[index]
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        return Example(messages, self.choices)

    def grade(self, index: int, answer: str) -> Grade:
        return Grade(answer == self.pairs[index][1], f"said {answer}")


def learned() -> TrainedModel:
    """Give the model that knows some answers by heart."""
    return TrainedModel(chat_model(), tokenizer(), batch_size=4)


def test_an_answer_is_written_with_the_tool_and_graded() -> None:
    tool = "Let me see. <|python_start|>12*(3+4)<|python_end|><|output_start|>84<|output_end|>"
    quiz = Quiz(
        [
            ("What color is the sky?", WEATHER),
            ("What is 12*(3+4)?", f"{tool}It is 84."),
            ("Count", "nothing"),
        ]
    )

    grades = WritingExam(quiz).take(learned(), [0, 1, 2])

    assert [grade.is_correct for grade in grades] == [True, True, False]
    assert grades[2].note == f"said {ANSWERS['Count']}"


def test_a_question_that_leaves_no_room_for_an_answer_is_wrong() -> None:
    model = TrainedModel(tiny_gpt(vocab_size=BYTES.vocab_size, max_seq_len=8, rope_reach=4), BYTES)

    assert WritingExam(Quiz([("?" * 40, "A")])).take(model, [0]) == [NO_ROOM]


def test_the_likeliest_letter_is_the_answer() -> None:
    first = {
        question: tokenizer().decode(tokenizer().encode(answer)[:1])
        for question, answer in ANSWERS.items()
        if isinstance(answer, str) and answer.isascii()
    }
    quiz = Quiz(list(first.items()), choices=("x", *first.values()))

    assert [g.is_correct for g in ChoiceExam(quiz).take(learned(), [2, 0, 1])] == [True] * 3


def test_a_letter_that_is_not_one_token_is_refused() -> None:
    model = TrainedModel(tiny_gpt(vocab_size=BYTES.vocab_size), BYTES)
    quiz = Quiz([("?", "Ä")], choices=("A", "Ä"))

    with pytest.raises(InputError, match="'Ä' of quiz is 2 tokens in this vocabulary"):
        ChoiceExam(quiz).take(model, [0])


def test_a_question_longer_than_the_model_can_read_is_wrong() -> None:
    model = TrainedModel(tiny_gpt(vocab_size=BYTES.vocab_size, max_seq_len=8, rope_reach=4), BYTES)
    quiz = Quiz([("?", "A"), ("?" * 40, "A"), ("!", "A")], choices=("A", "B"))

    grades = ChoiceExam(quiz).take(model, [0, 1, 2])

    assert [grade == NO_ROOM for grade in grades] == [False, True, False]


def test_the_kind_of_a_task_follows_from_its_examples() -> None:
    choosing, writing = exam_of(Quiz([("?", "A")] * 5, ("A",)), 3), exam_of(Quiz([("?", "A")]))

    assert (type(choosing), len(choosing)) == (ChoiceExam, 3)
    assert (type(writing), len(writing)) == (WritingExam, 1)


def test_the_mean_of_nothing_is_no_number() -> None:
    assert mean_nats([-1.0, -2.0]) == 1.5
    assert math.isnan(mean_nats([]))
