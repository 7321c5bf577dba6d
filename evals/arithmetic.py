"""Arithmetic: small calculations in words and in signs, to be done with the calculator.

What is to be learned is when to call the tool, how to copy the numbers into the call, and how to
say what comes out. One example depends on its split and index alone.
"""

import ast
import random
import re
import zlib
from typing import Literal

from evals.gsm8k import Part, grade_number
from evals.spelling import FIRST_TEST_SEED, check_index
from evals.words import TEST_ONE_IN, TEST_SALT
from nanoray.inference.calculator import calculate
from nanoray.task import Example, Grade

TWO_OPERANDS: dict[str, tuple[str, ...]] = {
    "a+b": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "What is the sum of {a} and {b}?",
        "I have {a} coins and find {b} more. How many coins do I have?",
    ),
    "a-b": (
        "What is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "What is the difference of {a} and {b}?",
        "Take {b} away from {a}.",
    ),
    "a*b": (
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "What is the product of {a} and {b}?",
        "There are {a} boxes with {b} pens in each. How many pens are there?",
    ),
    "a/b": (
        "What is {a} divided by {b}?",
        "Divide {a} by {b}.",
        "What is the quotient of {a} and {b}?",
        "How often does {b} go into {a}?",
    ),
}
"""Formula -> ways to ask in words."""

THREE_OPERANDS: dict[str, tuple[str, ...]] = {
    "(a+b)*c": ("Add {a} and {b}, then multiply by {c}.",),
    "(a-b)*c": ("Subtract {b} from {a}, then multiply by {c}.",),
    "a*(b+c)": ("Multiply {a} by the sum of {b} and {c}.",),
    "a*(b-c)": ("Multiply {a} by the difference of {b} and {c}.",),
    "a-(b+c)": ("Subtract the sum of {b} and {c} from {a}.",),
    "a-(b-c)": ("Subtract the difference of {b} and {c} from {a}.",),
}

SIGN_TEMPLATES = (
    "What is {expression}?",
    "Calculate {expression}.",
    "Compute {expression}",
    "How much is {expression}?",
    "Can you work out {expression} for me?",
    "{expression} = ?",
    "{expression}",
)
SIGNS = {"*": ("*", "\u00d7", "x"), "/": ("/", "\u00f7")}
"""How the operators of the calculator are written in questions."""

THREE_OPERANDS_CHANCE = 0.25
WORDS_CHANCE = 0.5
NO_SPACES_CHANCE = 0.3
LARGER_FIRST_CHANCE = 0.8
"""That a difference is brought into an order in which it is not negative."""


class Arithmetic:
    """Calculations with two or three numbers; no expression of a test is ever seen in training.

    Divisions are exact, and written with "/", as in GSM8K: the calculator then gives "12.0", and
    the answer says 12.
    """

    name: str = "Arithmetic"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(self, split: Literal["train", "test"], *, size: int = 256) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        """Give the number of questions."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one question; the answer is in parts."""
        question, expression = self.draw(index)
        messages = (
            {"role": "user", "content": question},
            {"role": "assistant", "content": calculation_parts(expression)},
        )
        return Example(messages)

    def grade(self, index: int, answer: str) -> Grade:
        """Compare the final number of an answer with the result."""
        _, expression = self.draw(index)
        return grade_number(answer, number_of(value_of(expression)))

    def draw(self, index: int) -> tuple[str, str]:
        """Draw a question, and the expression that the calculator is to be given."""
        check_index(index, self.size)
        is_test = self.split == "test"
        rng = random.Random(FIRST_TEST_SEED + index if is_test else index)
        while True:
            formula, operands = draw_operands(rng)
            expression = "".join(operands.get(char, char) for char in formula)
            if is_test_expression(expression) == is_test:
                return draw_question(rng, formula, operands, expression), expression


def draw_operands(rng: random.Random) -> tuple[str, dict[str, str]]:
    """Draw a formula, and the numbers for its letters."""
    if rng.random() < THREE_OPERANDS_CHANCE:
        formula = rng.choice(tuple(THREE_OPERANDS))
        return formula, {letter: str(draw_number(rng, 2)) for letter in "abc"}
    formula = rng.choice(tuple(TWO_OPERANDS))
    a, b = draw_number(rng, 3), draw_number(rng, 3)
    if formula == "a/b":
        b = rng.randint(2, 99)
        a = b * draw_number(rng, 2)
    elif formula == "a-b" and rng.random() < LARGER_FIRST_CHANCE:
        a, b = max(a, b), min(a, b)
    return formula, {"a": str(a), "b": str(b)}


def draw_number(rng: random.Random, most_digits: int) -> int:
    """Draw a positive number, each number of digits as often as another."""
    digits = rng.randint(1, most_digits)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def draw_question(
    rng: random.Random, formula: str, operands: dict[str, str], expression: str
) -> str:
    """Draw a way to ask, in words or in signs; the numbers stand in it as they are."""
    if rng.random() < WORDS_CHANCE:
        return rng.choice({**TWO_OPERANDS, **THREE_OPERANDS}[formula]).format(**operands)
    if rng.random() >= NO_SPACES_CHANCE:
        signs = {operator: rng.choice(ways) for operator, ways in SIGNS.items()}
        expression = re.sub(
            r"[-+*/]", lambda found: f" {signs.get(found[0], found[0])} ", expression
        )
    return rng.choice(SIGN_TEMPLATES).format(expression=expression)


def calculation_parts(expression: str) -> list[Part]:
    """Write an answer: the call of the calculator, what it gives, and the number."""
    value = value_of(expression)
    number = number_of(value)
    return [
        {"type": "text", "text": "I calculate this: "},
        {"type": "python", "text": expression},
        {"type": "python_output", "text": value},
        {"type": "text", "text": f"\n\nThe result is {number}.\n\n#### {number}"},
    ]


def value_of(expression: str) -> str:
    """Give what the calculator gives."""
    value = calculate(expression)
    assert value is not None, f"the calculator refused {expression}"
    return value


def number_of(value: str) -> str:
    """Write the value of an exact division, such as "12.0", as a whole number."""
    return value.removesuffix(".0")


def is_test_expression(expression: str) -> bool:
    """Say whether an expression, one in ten, is kept out of training: the same ones everywhere."""
    return zlib.crc32(f"{TEST_SALT}{canonical(expression)}".encode()) % TEST_ONE_IN == 0


def canonical(expression: str) -> str:
    """Write an expression such that those which differ in the order of + and * alone are one."""
    return canonical_node(ast.parse(expression, mode="eval").body)


def canonical_node(node: ast.expr) -> str:
    """Write a syntax tree with a parenthesis around each operation."""
    if not isinstance(node, ast.BinOp):
        return ast.unparse(node)
    sides = [canonical_node(node.left), canonical_node(node.right)]
    if isinstance(node.op, ast.Add | ast.Mult):
        sides.sort()
    return f"({sides[0]} {type(node.op).__name__} {sides[1]})"
