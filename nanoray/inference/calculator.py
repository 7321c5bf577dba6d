"""The calculator a model may use: text of an expression in, text of its value out, or nothing.

It walks the syntax tree, so nothing is ever evaluated that is not written below, and it works in
any thread. The language is that of nanochat's calculator, which calls `eval` on filtered text:
arithmetic of + - * / // with parentheses, and expressions of string literals in which `.count(...)`
stands: methods, and the operators that are words (and, or, not, if, in, is). It gives the same text
for each of them, with one difference: commas are thousands separators and are dropped, but inside a
string literal they are text and stay. Functions and generators have no value here.
"""

import ast
import codecs
import operator
import string
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

MAX_CHARS = 500
MAX_DIGITS = 100
MAX_DEPTH = 50
MAX_STRING_CHARS = 10_000
"""Four limits that bound the time: without powers, a number has no more digits than its expression,
and the longest string that a method may make is counted in microseconds."""
SLOW_CODECS = frozenset(("punycode", "idna"))
"""Written in Python; 10,000 characters take them up to a tenth of a second."""
SLOW_CHARS_LEFT: ContextVar[int] = ContextVar("SLOW_CHARS_LEFT")
"""How many characters they may still work on for the expression that is being computed."""

ARITHMETIC_CHARS = frozenset("0123456789*+-/.() ")
STRING_CHARS = frozenset(string.ascii_letters + string.digits + "'\"()._ ")
FORBIDDEN_WORDS = (
    *("__", "import", "exec", "eval", "compile", "open", "file", "input", "raw_input", "globals"),
    *("locals", "vars", "dir", "getattr", "setattr", "delattr", "hasattr"),
)
"""Text that nanochat refuses wherever it stands, in "direct" and "profile" too: a model that was
trained with one of the two calculators must find the same language in the other."""

Value = Any  # Any: a number, a string, or what their methods give

BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
UNARY: dict[type[ast.unaryop], Callable[[Value], Value]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda value, several: value in several,
    ast.NotIn: lambda value, several: value not in several,
}
STRING_METHODS = frozenset(
    (
        *("count", "find", "rfind", "index", "rindex", "startswith", "endswith"),
        *("lower", "upper", "title", "capitalize", "swapcase", "casefold"),
        *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix"),
        *("split", "rsplit", "splitlines", "partition", "rpartition"),
        *("isalpha", "isdigit", "isalnum", "isupper", "islower", "isspace", "istitle", "isascii"),
        *("isdecimal", "isnumeric", "isidentifier", "isprintable"),
        *("encode", "decode", "format", "format_map"),  # there are no braces to fill
    )
)
"""Methods whose result is about as long as their string, or a number."""
SEQUENCE_METHODS = frozenset(("count", "index"))
"""Of what `split` gives."""
PADDING_METHODS = frozenset(("ljust", "rjust", "center", "zfill"))
NUMBER_METHODS = frozenset(("bit_length", "bit_count", "conjugate", "is_integer"))
NUMBER_FIELDS = frozenset(("real", "imag", "numerator", "denominator"))


class RefusedError(Exception):
    """The expression is outside of the language, or beyond a limit."""


def calculate(expression: str) -> str | None:
    """Give the value of an expression as text; None where the calculator has no answer."""
    if len(expression) > MAX_CHARS:
        return None
    text = drop_separators(expression)
    if not is_in_language(text):
        return None
    SLOW_CHARS_LEFT.set(MAX_CHARS)  # whatever stands in an expression can go through them once
    try:
        tree = ast.parse(text.lstrip(" "), mode="eval")
        value = evaluate(tree.body, 0)
    except Exception:  # as the original: what a model writes must never end the engine it runs in
        return None
    return None if value is None else str(value)


def drop_separators(expression: str) -> str:
    """Remove the commas that stand outside of string literals."""
    kept, quote = [], ""
    for char in expression:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == ",":
            continue
        kept.append(char)
    return "".join(kept)


def is_in_language(text: str) -> bool:
    """Decide by characters and words alone, as nanochat does, before anything is parsed."""
    if set(text) <= ARITHMETIC_CHARS:
        return "**" not in text
    lowered = text.lower()
    return (
        set(text) <= STRING_CHARS | {","}  # those that are left stand in literals
        and not any(word in lowered for word in FORBIDDEN_WORDS)
        and ".count(" in text
    )


def evaluate(node: ast.expr, depth: int) -> Value:
    """Compute the value of a syntax tree.

    A chain such as 1+2+3 leans to the left, as deep as it is long; it is walked in a loop, so that
    only nesting counts as depth.
    """
    if depth > MAX_DEPTH:
        raise RefusedError(node)
    pending: list[tuple[Callable[[Value, Value], Value], ast.expr]] = []
    while isinstance(node, ast.BinOp):
        if type(node.op) not in BINARY:
            raise RefusedError(node)
        pending.append((BINARY[type(node.op)], node.right))
        node = node.left
    value = evaluate_operand(node, depth + 1)
    for apply, right in reversed(pending):
        value = apply(value, evaluate(right, depth + 1))
    return value


def evaluate_operand(node: ast.expr, depth: int) -> Value:
    """Compute what stands between operators."""
    match node:
        case ast.Constant(value=int() | float() | str() | bytes() | None as constant):
            if isinstance(constant, int) and abs(constant) >= 10**MAX_DIGITS:
                raise RefusedError(node)
            return constant
        case ast.Constant(value=value) if value is ...:
            return value
        case ast.Tuple(elts=[]):
            return ()
        case ast.JoinedStr(values=values):  # an f-string, of whose braces there are none
            return "".join(evaluate(value, depth) for value in values)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in UNARY:
            return UNARY[type(op)](evaluate(operand, depth))
        case ast.Attribute(value=owner, attr=name) if name in NUMBER_FIELDS:
            value = evaluate(owner, depth)
            if isinstance(value, int | float):
                return getattr(value, name)
        case ast.Call(func=ast.Attribute(value=owner, attr=method), args=args, keywords=[]):
            return call(evaluate(owner, depth), method, [evaluate(arg, depth) for arg in args])
    return evaluate_words(node, depth)


def evaluate_words(node: ast.expr, depth: int) -> Value:
    """Compute an operator that is a word."""
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not evaluate(operand, depth)
        case ast.BoolOp(op=op, values=values):
            return first_that_decides(values, isinstance(op, ast.Or), depth)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return evaluate(body if evaluate(test, depth) else orelse, depth)
        case ast.Compare(left=left, ops=ops, comparators=others):
            return compare(evaluate(left, depth), list(zip(ops, others, strict=True)), depth)
    raise RefusedError(node)


def first_that_decides(values: list[ast.expr], decides: bool, depth: int) -> Value:
    """Compute `and` (False decides) or `or` (True does); what stands behind is not looked at."""
    value: Value = None
    for node in values:
        value = evaluate(node, depth)
        if bool(value) is decides:
            break
    return value


def compare(left: Value, others: list[tuple[ast.cmpop, ast.expr]], depth: int) -> bool:
    """Compute a chain of comparisons; what stands behind the first that fails is not looked at."""
    for op, node in others:
        if type(op) not in COMPARISONS:
            raise RefusedError(node)
        right = evaluate(node, depth)
        if not COMPARISONS[type(op)](left, right):
            return False
        left = right
    return True


def call(owner: Value, method: str, arguments: list[Value]) -> Value:
    """Call a method, of those whose result is bounded."""
    if isinstance(owner, list | tuple) and method in SEQUENCE_METHODS:
        return getattr(owner, method)(*arguments)
    if isinstance(owner, int | float) and method in NUMBER_METHODS:
        return getattr(owner, method)(*arguments)
    if not isinstance(owner, str | bytes) or len(owner) > MAX_STRING_CHARS:
        raise RefusedError(method)
    if method in (*PADDING_METHODS, "expandtabs"):
        if any(isinstance(width, int) and width > MAX_STRING_CHARS for width in arguments):
            raise RefusedError(method)
    elif method == "join":
        if any(len(owner) * len(pieces) > MAX_STRING_CHARS for pieces in map(list, arguments)):
            raise RefusedError(method)
    elif method not in STRING_METHODS:
        raise RefusedError(method)
    if method in ("encode", "decode") and owner and arguments:
        charge_codec(arguments[0], len(owner))
    return getattr(owner, method)(*arguments)


def charge_codec(encoding: Value, length: int) -> None:
    """Count the characters that a slow codec works on; those in excess are refused.

    An empty string is not asked for: it needs no codec, not even one that exists.
    """
    if codecs.lookup(encoding).name in SLOW_CODECS:
        SLOW_CHARS_LEFT.set(SLOW_CHARS_LEFT.get() - length)
        if SLOW_CHARS_LEFT.get() < 0:
            raise RefusedError(encoding)
