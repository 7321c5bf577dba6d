import random
import re
from fractions import Fraction

import pytest

from evals.arithmetic import (
    THREE_OPERANDS,
    TWO_OPERANDS,
    Arithmetic,
    canonical,
    is_test_expression,
)
from evals.gsm8k import answer_text
from nanoray.inference.calculator import calculate
from tests.evals.local_hub import check_renders


def exact(expression: str) -> Fraction:
    """Compute with fractions, by Python itself."""
    return Fraction(eval(re.sub(r"(\d+)", r"Fraction(\1)", expression), {"Fraction": Fraction}))


def test_no_expression_of_a_test_is_seen_in_training() -> None:
    train, test = Arithmetic("train", size=20_000), Arithmetic("test", size=5_000)

    trained = {canonical(train.draw(index)[1]) for index in range(len(train))}
    tested = {canonical(test.draw(index)[1]) for index in range(len(test))}

    assert len(tested) > 3_000
    assert trained.isdisjoint(tested)


def test_one_expression_in_ten_is_for_tests() -> None:
    expressions = [f"{a}*{b}" for a in range(1, 100) for b in range(a, 100)]

    share = sum(map(is_test_expression, expressions)) / len(expressions)

    # The standard error of a share of 4,950 is 0.4 %.
    assert share == pytest.approx(0.1, abs=0.015)


def test_expressions_that_differ_in_the_order_of_terms_are_one() -> None:
    assert canonical("12*34") == canonical("34*12")
    assert canonical("5*(7+60)") == canonical("(60+7)*5")
    assert canonical("3-4") != canonical("4-3")
    assert canonical("8/4") != canonical("4/8")
    assert canonical("9-(1+2)") != canonical("9-(1-2)")


def test_the_tool_gives_what_the_answer_says_it_gives() -> None:
    lessons = Arithmetic("train", size=3_000)

    for index in range(len(lessons)):
        text, call, output, result = lessons.example(index).messages[1]["content"]
        kinds = [part["type"] for part in (text, call, output, result)]
        assert kinds == ["text", "python", "python_output", "text"]
        assert calculate(call["text"]) == output["text"]


def test_results_are_right_and_whole() -> None:
    lessons = Arithmetic("train", size=3_000)

    for index in range(len(lessons)):
        _, call, _, result = lessons.example(index).messages[1]["content"]
        number = result["text"].rpartition("\n\n#### ")[2]
        assert re.fullmatch(r"-?\d+", number)
        assert exact(call["text"]) == int(number)


def test_the_numbers_of_the_call_stand_in_the_question() -> None:
    lessons = Arithmetic("train", size=3_000)

    for index in range(len(lessons)):
        question, expression = lessons.draw(index)
        assert sorted(re.findall(r"\d+", question)) == sorted(re.findall(r"\d+", expression))


def test_every_formula_is_asked_for() -> None:
    lessons = Arithmetic("train", size=3_000)

    formulas = set()
    for index in range(len(lessons)):
        formula = lessons.draw(index)[1]
        for letter in "abc":
            formula = re.sub(r"\d+", letter, formula, count=1)
        formulas.add(formula)

    assert formulas == {*TWO_OPERANDS, *THREE_OPERANDS}


def test_own_answers_are_right_and_others_wrong() -> None:
    task = Arithmetic("test")
    answers = [answer_text(task.example(index).messages[1]["content"]) for index in range(256)]

    assert len(task) == 256
    assert all(task.grade(index, answer).is_correct for index, answer in enumerate(answers))
    assert not any(task.grade(index, f"{a}7").is_correct for index, a in enumerate(answers))
    assert task.grade(0, "about ten").note == "no '#### number'"


def test_an_example_depends_on_split_and_index_alone() -> None:
    in_order = [Arithmetic("train").draw(index) for index in range(20)]

    random.seed(7)
    backwards = [Arithmetic("train", size=20).draw(index) for index in reversed(range(20))]

    assert backwards[::-1] == in_order


def test_every_example_renders() -> None:
    check_renders(Arithmetic("train", size=300))
    check_renders(Arithmetic("test"))


def test_examples_end_where_the_size_says() -> None:
    with pytest.raises(IndexError, match="example 2 of 2"):
        Arithmetic("train", size=2).example(2)
