"""What the two processes of the grader tell each other, byte by byte."""

import ast

import pytest

from evals.grader_child import NotLiteralError, decode, encode, exception


@pytest.mark.parametrize("value", [None, 7, -(2**70), 1.5, 2j, "ä\n", b"\0", [1], (1,), {1: {2}}])
def test_a_message_is_a_literal_of_ascii(value: object) -> None:
    message = encode(value)

    assert message.isascii()
    assert ast.literal_eval(message.decode()) == value


def test_infinity_is_a_number_and_a_text_about_it_is_a_text() -> None:
    value = [float("inf"), -float("inf"), "inf nan", {"nan": float("inf")}]

    assert decode(encode(value)) == value


@pytest.mark.parametrize("value", [object(), len, range(3), [object()], {1: iter(())}, int])
def test_what_is_no_plain_value_has_no_message(value: object) -> None:
    with pytest.raises(NotLiteralError):
        encode(value)


@pytest.mark.parametrize(
    "message",
    [
        *(b"", b"\xff", b"\0", b"f()", b"x", b"infinity", b"inf()", b"1 if 1 else 2", b"{[]: 1}"),
        *(b"[" * 100_000, b"-" * 100_000 + b"1", b"9" * 5000, b"(1", b"__import__('os')", b"1\n2"),
        *(b"[x for x in ()]", b"lambda: 0", b"f'{1}'", b"2 ** 99", b"'a' + 'b'", b"inf.real"),
    ],
)
def test_what_is_no_literal_is_refused(message: bytes) -> None:
    with pytest.raises(NotLiteralError):
        decode(message)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("ValueError", ValueError), ("KeyError", KeyError), ("Exception", Exception)),
        *(("UnicodeDecodeError", RuntimeError), ("SystemExit", RuntimeError)),
        *(("exit", RuntimeError), ("nowhere", RuntimeError), ("__import__", RuntimeError)),
    ],
)
def test_only_built_in_errors_are_made_by_name(name: str, kind: type[Exception]) -> None:
    error = exception(name, "text")

    assert type(error) is kind
