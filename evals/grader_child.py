"""What runs in the two sandboxes of the grader: one answers calls of the program, one judges.

Its source is sent to both, so it imports the standard library alone. Values travel between the two
as Python literals. A literal is a plain value where it arrives: whatever a class of the graded
program claims about itself stays where the program is.
"""

import ast
import builtins
import os
import sys
from collections.abc import Callable
from types import EllipsisType
from typing import Any, NoReturn

Receive = Callable[[], bytes]
Send = Callable[[bytes], None]
Value = Any  # Any: whatever a function that is graded takes or gives

NOTES = {"MemoryError": "out of memory", "MissingFunctionError": "function not defined"}
"""What is said in other words than `raised ...`."""


class NotLiteralError(Exception):
    """A value that no literal can stand for, or a text that is no literal."""


class MissingFunctionError(Exception):
    """The program does not define what the tests call."""


def encode(value: Value) -> bytes:
    """Write a value as a Python literal of ASCII characters.

    An instance of a subclass becomes the built-in value that it is: a Counter the dict to which it
    is equal, the member of an enumeration its integer.

    Raises:
        NotLiteralError: it is not made of numbers, texts, bytes, lists, tuples, sets and dicts.
    """
    return literal(value).encode()


def literal(value: Value) -> str:
    """Write one value; `inf` and `nan` are written as these names."""
    match value:
        case None | bool():
            return repr(value)
        case EllipsisType():
            return "..."
        case int():
            return hex(value)  # as a decimal, Python reads and writes no more than 4,300 digits
        case float():
            return float.__repr__(value)
        case complex():
            return complex.__repr__(value)
        case str():
            return ascii(str.__str__(value))
        case bytes() | bytearray():
            return repr(bytes(value))
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case tuple():
            return f"({''.join(f'{literal(item)}, ' for item in value)})"
        case set() | frozenset():
            return f"{{{', '.join(map(literal, value))}}}" if value else "set()"
        case dict():
            items = (f"{literal(key)}: {literal(item)}" for key, item in value.items())
            return f"{{{', '.join(items)}}}"
    raise NotLiteralError(type(value).__name__)


def decode(message: bytes) -> Value:
    """Read a literal; nothing in it is executed.

    Raises:
        NotLiteralError: it is none, or more deeply nested than Python's parser allows.
    """
    try:
        tree = ast.parse(message.decode("ascii"), mode="eval")
        if b"inf" in message or b"nan" in message:
            tree = NamedNumbers().visit(tree)
        return ast.literal_eval(tree)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise NotLiteralError(message[:40]) from error


class NamedNumbers(ast.NodeTransformer):
    """Puts in the two numbers that have a name and no literal."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Replace a name by its number."""
        return ast.Constant(float(node.id)) if node.id in ("inf", "nan") else node


def serve_candidate(receive: Receive, send: Send) -> NoReturn:
    """Execute the program, then answer calls of its function, until killed.

    It receives the function's name and the program, then the arguments of each call. Nothing here
    is out of the program's reach, and nothing here is worth reaching: all that it could forge is an
    answer, and it may answer anything.
    """
    entry_point, source = decode(receive())
    module = type(sys)("candidate")
    sys.modules["candidate"] = module  # dataclasses look for the module of a class
    try:
        send(reply(load, source, entry_point, module.__dict__))
        function = module.__dict__.get(entry_point)
        while True:
            args, kwargs = decode(receive())
            send(reply(function, *args, **kwargs))
    finally:
        os._exit(0)  # what asks to exit does so at once, and waits for no threads


def load(source: str, entry_point: str, scope: dict[str, Value]) -> None:
    """Execute a program, and look for its function."""
    exec(compile(source, "<candidate>", "exec"), scope)
    if not callable(scope.get(entry_point)):
        raise MissingFunctionError(entry_point)


def reply(function: Value, *args: Value, **kwargs: Value) -> bytes:
    """Call a function; give its result, or its error, as a message."""
    try:
        return encode(("value", function(*args, **kwargs)))
    except NotLiteralError:
        return encode(("no literal",))
    except Exception as error:
        # They keep all that the function held, if need be all memory.
        error.__traceback__ = error.__context__ = None
        own, *bases = type(error).__mro__
        builtin = next(base for base in (own, *bases) if base.__module__ == "builtins")
        return encode(("raised", own.__name__, builtin.__name__, str(error)[:200]))


class Candidate:
    """Stands for the program's function in the tests, and remembers how it failed."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive, self.send = receive, send
        self.failure = ""
        """Why no answer of the program counts any more, whatever the tests make of it."""
        self.raised: Exception | None = None
        self.note = ""
        """How to tell of what was last raised."""

    def __call__(self, *args: Value, **kwargs: Value) -> Value:
        """Call the program's function."""
        self.send(b"call " + encode((args, kwargs)))
        return self.take_reply()

    def take_reply(self) -> Value:
        """Wait for a reply, and return or raise what the function did."""
        try:
            match decode(self.receive()):
                case ("value", value):
                    return value
                case ("raised", str() as name, str() as builtin, str() as message):
                    # The program chose the name, and the note is printed.
                    shown = name[:40] if name.isascii() and name.isidentifier() else "an error"
                    self.note = NOTES.get(name, f"raised {shown}")
                    self.raised = exception(builtin, message)
                    raise self.raised
        except NotLiteralError:
            pass  # the program wrote the reply by itself
        self.failure = "no literal result"
        raise NotLiteralError


def exception(name: str, message: str) -> Exception:
    """Make the built-in exception of a name; a RuntimeError where there is none."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass  # UnicodeDecodeError and its kind want more than a message
    return RuntimeError(f"{name}: {message}")


def run_tests(receive: Receive, send: Send) -> None:
    """Judge a program by trusted tests.

    It receives the tests' parts, and sends `loaded` or `unusable` and why. Then it receives the
    reply to the loading of the program, sends a `call` and receives its reply as often as the tests
    do, and at last sends `passed`, or `failed` and why.
    """
    entry_point, prelude, check = decode(receive())
    candidate = Candidate(receive, send)
    scope: dict[str, Value] = {"__name__": "tests"}
    try:
        exec(compile(prelude, "<prelude>", "exec"), scope)
        scope[entry_point] = candidate
        exec(compile(check, "<check>", "exec"), scope)
        judge = scope["check"]
    except Exception as error:
        return send(f"unusable {type(error).__name__}: {error}".encode("utf-8", "replace"))
    send(b"loaded")
    return send(verdict(judge, candidate).encode("utf-8", "replace"))


def verdict(judge: Callable[[Candidate], None], candidate: Candidate) -> str:
    """Run the tests; say that the program passed, or that it failed and why."""
    try:
        candidate.take_reply()
        judge(candidate)
    except AssertionError as error:
        note = candidate.note if error is candidate.raised else "wrong answer"
    except Exception as error:
        in_tests = f"wrong answer: {type(error).__name__} in the tests"
        note = candidate.note if error is candidate.raised else in_tests
    else:
        note = ""
    note = candidate.failure or note
    return f"failed {note}" if note else "passed"
