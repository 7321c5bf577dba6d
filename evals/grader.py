"""The grader of programs: a candidate and its tests in, right or wrong and why out.

Candidate and tests run in a sandbox each. The candidate's only answers calls; the tests' makes them
and judges the results, which arrive as Python literals. This process stands between the two and
hands on messages that it does not read. So a candidate sees the arguments of the calls, and
neither the tests nor the way a verdict is given; it can exit, lie about equality, patch what it
likes or write to whatever is open, and all that reaches the tests is an answer.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evals.grader_child import encode, run_tests, serve_candidate
from nanoray.config import DataError
from nanoray.inference.sandbox import Level, Limits, Sandbox, StoppedError
from nanoray.task import Grade


@dataclass(frozen=True)
class ProgramTests:
    """What a program is measured by. It is trusted code, and run in a sandbox all the same."""

    entry_point: str
    """Name of the function that the program has to define."""
    check: str
    """Python that defines `check(candidate)`, which raises unless the function is right."""
    prelude: str = ""
    """Python that `check` may rely on, executed before it, such as the prompt with its helpers."""


def grade_program(candidate: str, tests: ProgramTests, limits: Limits, *, level: Level) -> Grade:
    """Grade a program that a model wrote.

    The time limit is that of the program and its tests together, counted from when both are ready.

    Args:
        candidate: Python that should define the tests' entry point.
        tests: what to measure it by.
        limits: of each of the two processes.
        level: of both sandboxes; see `nanoray.inference.sandbox.choose_level`.

    Raises:
        DataError: the tests cannot be used.
        InputError: this machine does not have the level.
        SandboxError: a process did not start, which says nothing about the program.
    """
    with (
        Sandbox(program_of(serve_candidate.__name__), level=level, limits=limits) as answering,
        Sandbox(program_of(run_tests.__name__), level=level, limits=limits) as judging,
    ):
        judging.wait_until_ready()
        answering.wait_until_ready()
        load_tests(judging, tests)
        answering.deadline = judging.deadline = time.monotonic() + limits.timeout_seconds
        try:
            answering.send(encode((tests.entry_point, candidate)))
            return relay(answering, judging)
        except StoppedError as error:
            return Grade(is_correct=False, note=str(error))


@cache
def program_of(role: str) -> str:
    """Write the program of one of the two sandboxes."""
    source = Path(__file__).with_name("grader_child.py").read_text(encoding="utf-8")
    return f"{source}\n\n{role}(receive, send)\n"


def load_tests(judging: Sandbox, tests: ProgramTests) -> None:
    """Have the tests executed, so that they wait for a program."""
    try:
        judging.send(encode((tests.entry_point, tests.prelude, tests.check)))
        answer = judging.receive().decode()
    except StoppedError as error:
        answer = f"they {error}"
    if answer != "loaded":
        problem = answer.removeprefix("unusable ")
        raise DataError(
            f"The tests of {tests.entry_point} cannot be used ({problem}). "
            "They must define check(candidate)."
        )


def relay(answering: Sandbox, judging: Sandbox) -> Grade:
    """Hand on calls and replies until the tests have a verdict."""
    while True:
        judging.send(answering.receive())
        try:
            kind, _, body = judging.receive().partition(b" ")
        except StoppedError as error:  # such as a loop over a result that is far too large
            raise StoppedError(f"wrong answer: the tests {error}") from error
        if kind != b"call":
            return Grade(is_correct=kind == b"passed", note=body.decode())
        answering.send(body)
