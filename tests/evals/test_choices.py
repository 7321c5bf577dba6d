import pytest

from evals.choices import choice_example, grade_letter, question_text
from nanoray.config import DataError


def test_a_question_is_written_as_nanochat_writes_it() -> None:
    text = question_text("Q?", ["A", "B"], ["x", "y"])

    assert text == (
        "Multiple Choice question: Q?\n- x=A\n- y=B\n\n"
        "Respond only with the letter of the correct answer."
    )


def test_the_answer_is_the_bare_letter() -> None:
    example = choice_example("Q?", ["1", "2", "3"], ["x", "y", "z"], "2")

    assert example.messages[-1] == {"role": "assistant", "content": "2"}
    assert example.choices == ("1", "2", "3")
    assert grade_letter(example, "2").is_correct
    assert not grade_letter(example, "1").is_correct


def test_a_letter_that_is_no_choice_cannot_be_graded() -> None:
    example = choice_example("Q?", ["A", "B"], ["x", "y"], "A")

    with pytest.raises(AssertionError, match="'C' is none of the choices"):
        grade_letter(example, "C")


def test_a_question_whose_answer_is_no_choice_is_refused() -> None:
    with pytest.raises(DataError, match="has the answer 'E' and the letters A, B for 2 choices"):
        choice_example("Q?", ["A", "B"], ["x", "y"], "E")


def test_a_choice_without_a_letter_is_refused() -> None:
    with pytest.raises(DataError, match="the letters A, B for 3 choices"):
        choice_example("Q?", ["A", "B"], ["x", "y", "z"], "A")
