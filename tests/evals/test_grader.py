"""The grader, attacked by programs that are wrong and want to be right."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from evals.grader import ProgramTests, grade_program
from nanoray.config import DataError
from nanoray.inference.sandbox import Level, Limits, strongest_level
from nanoray.task import Grade
from tests.evals.hostile_programs import ATTACKS, WRONG
from tests.sandboxes import needs_strong, no_trace_in

HUMAN_EVAL = Path(__file__).parents[2].parent / (
    "shared/data/hub/openai/openai_humaneval/openai_humaneval/test.parquet"
)
LEVELS = [pytest.param("strong", marks=needs_strong), "basic"]


@pytest.fixture(autouse=True)
def no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with no_trace_in(tmp_path / "sandboxes", monkeypatch):
        yield


def grade(candidate: str, check: str, prelude: str = "", *, timeout_seconds: float = 20.0) -> Grade:
    """Grade a function `f` by the body of a check."""
    body = "".join(f"    {line}\n" for line in check.splitlines())
    tests = ProgramTests("f", f"def check(candidate):\n{body}", prelude)
    limits = Limits(timeout_seconds=timeout_seconds)
    return grade_program(candidate, tests, limits, level=strongest_level())


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_program_is_said(name: str) -> None:
    candidate, note = WRONG[name]

    seconds = 0.5 if note == "timed out" else 20.0

    given = grade(candidate, "assert candidate(1) == 2", timeout_seconds=seconds)

    assert not given.is_correct
    assert any(given.note.startswith(start) for start in note.split("|")), given.note


@needs_strong
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_does_not_pass(name: str) -> None:
    given = grade(f"import os\n{ATTACKS[name]}", "assert candidate(1) == 2", timeout_seconds=5.0)

    assert not given.is_correct
    assert "raised" not in given.note, "the attack itself is broken"


@pytest.mark.parametrize("level", LEVELS)
def test_right_and_wrong_are_told_apart_at_every_level(level: Level) -> None:
    tests = ProgramTests("f", "def check(candidate): assert candidate(1) == 2")
    limits = Limits(timeout_seconds=0.5)
    programs = ["x + 1", "x", "exit()", "[1 for _ in iter(int, 1)]"]

    grades = [
        grade_program(f"def f(x): return {text}", tests, limits, level=level) for text in programs
    ]

    assert [given.is_correct for given in grades] == [True, False, False, False]
    assert grades[1].note == "wrong answer"
    assert grades[3].note in ("timed out", "out of memory")


VALUES = [
    *("None", "True", "...", "0", "-7", "10**5000", "1.5", "-0.0", "1e300", "2j", "3 - 1.5j"),
    *("float('inf')", "-float('inf')", "[float('inf'), 'nan', 'inf']", "''", "'\\ud800\\n\\0ä'"),
    *("b'\\0\\xff'", "[]", "[1, [2]]", "()", "(1,)", "(1, 2)", "set()", "{1, 'a'}", "{}"),
    "{'a': {1: (2, [3])}, None: b'', (): {4}}",
]


@pytest.mark.parametrize("value", VALUES)
def test_values_arrive_as_they_are_in_both_directions(value: str) -> None:
    check = f"value = {value}\ngot = candidate(value)\nassert got == value"
    check += "\nassert type(got) is type(value)"

    given = grade(f"def f(x):\n    assert x == {value}\n    return x", check)

    assert given == Grade(is_correct=True)


def test_not_a_number_arrives_as_such() -> None:
    given = grade("def f(x): return [x]", "got = candidate(float('nan'))[0]\nassert got != got")

    assert given.is_correct


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ("collections.Counter('aab')", "{'a': 2, 'b': 1}"),
        ("collections.defaultdict(list, {1: [2]})", "{1: [2]}"),
        ("collections.OrderedDict(a=1)", "{'a': 1}"),
        ("collections.namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("enum.IntEnum('E', 'A B').B", "2"),
        ("frozenset({1})", "{1}"),
        ("bytearray(b'x')", "b'x'"),
    ],
)
def test_subclasses_count_as_the_value_that_they_are(result: str, expected: str) -> None:
    given = grade(
        f"import collections, enum\ndef f(): return {result}", f"assert candidate() == {expected}"
    )

    assert given == Grade(is_correct=True)


@pytest.mark.parametrize("result", ["range(3)", "map(int, [])", "(i for i in ())", "object()"])
def test_what_is_no_value_fails(result: str) -> None:
    given = grade(f"def f(): return {result}", "try: candidate()\nexcept Exception: pass")

    assert given == Grade(is_correct=False, note="no literal result")


def test_arguments_may_have_names() -> None:
    given = grade(
        "def f(a, *b, c=0, **d): return a, b, c, d",
        "assert candidate(1, 2, c=3, d=4) == (1, (2,), 3, {'d': 4})",
    )

    assert given.is_correct


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("ValueError('text')", "ValueError"),
        ("KeyError(1)", "KeyError"),
        ("type('Own', (LookupError,), {})()", "LookupError"),
        ("UnicodeDecodeError('ascii', b'x', 0, 1, 'text')", "RuntimeError"),
    ],
)
def test_tests_can_expect_an_error(raised: str, expected: str) -> None:
    check = f"try: candidate()\nexcept {expected}: return\nassert False"

    given = grade(f"def f(): raise {raised}", check)

    assert given.is_correct


def test_an_expected_error_that_does_not_come_is_a_wrong_answer() -> None:
    given = grade("def f(): return 1", "try: candidate()\nexcept ValueError: return\nassert False")

    assert given == Grade(is_correct=False, note="wrong answer")


def test_a_result_that_breaks_the_tests_is_a_wrong_answer() -> None:
    given = grade("def f(): return None", "assert candidate() + 1 == 2")

    assert given == Grade(is_correct=False, note="wrong answer: TypeError in the tests")


def test_a_result_over_which_the_tests_run_for_ever_is_a_wrong_answer() -> None:
    given = grade(
        "def f(): return 10**12", "for _ in range(candidate()): pass", timeout_seconds=0.5
    )

    assert given == Grade(is_correct=False, note="wrong answer: the tests timed out")


def test_the_tests_may_use_helpers_of_the_prompt() -> None:
    prompt = "def double(x):\n    return 2 * x\n\ndef f(x):\n    '''Halve.'''\n"

    given = grade(f"{prompt}    return x // 2", "assert candidate(double(3)) == 3", prompt)

    assert given.is_correct


def test_a_helper_that_the_program_redefines_stays_that_of_the_prompt() -> None:
    prompt = "def double(x):\n    return 2 * x\n\ndef f(x):\n    '''Halve.'''\n"

    given = grade(
        f"{prompt}    return 0\ndef double(x): return 0", "assert candidate(double(3)) == 3", prompt
    )

    assert given.note == "wrong answer"


def test_tests_may_call_the_function_by_its_name() -> None:
    given = grade("def f(x): return x + 1", "assert f(1) == 2", "def f(x): pass")

    assert given.is_correct


@pytest.mark.parametrize(
    ("check", "problem"),
    [("def check(", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "KeyError: 'check'")],
)
def test_tests_that_cannot_be_used_are_an_error_and_not_a_grade(check: str, problem: str) -> None:
    tests = ProgramTests("f", check)

    with pytest.raises(DataError, match=f"The tests of f cannot be used .{problem}"):
        grade_program("def f(): pass", tests, Limits(), level=strongest_level())


def human_eval() -> list[dict[str, str]]:
    """Read the problems, where they are at hand."""
    if not HUMAN_EVAL.exists():
        pytest.skip(f"needs {HUMAN_EVAL}")
    rows: list[dict[str, str]] = pq.read_table(HUMAN_EVAL).to_pylist()
    return rows


def grade_human_eval(row: dict[str, str], solution: str) -> Grade:
    """Grade a solution of a problem."""
    tests = ProgramTests(row["entry_point"], row["test"], row["prompt"])
    limits = Limits(timeout_seconds=20)  # for machines that have other work too
    return grade_program(row["prompt"] + solution, tests, limits, level=strongest_level())


def test_all_canonical_solutions_of_human_eval_pass() -> None:
    rows = human_eval()

    with ThreadPoolExecutor(2) as pool:
        grades = pool.map(lambda row: grade_human_eval(row, row["canonical_solution"]), rows)
        failed = {
            row["task_id"]: given.note
            for row, given in zip(rows, grades, strict=True)
            if not given.is_correct
        }

    assert len(rows) == 164
    assert failed == {}


def test_no_solution_of_human_eval_passes_that_does_nothing() -> None:
    rows = human_eval()[::4]

    with ThreadPoolExecutor(2) as pool:
        grades = list(pool.map(lambda row: grade_human_eval(row, "    pass"), rows))

    assert [given for given in grades if given.is_correct] == []


def grade_many(count: int) -> None:
    """Grade programs that end in every way, a few at a time, and check each grade."""
    programs = {
        "def f(x): return x + 1": True,
        "def f(x): return x": False,
        "import os\ndef f(x): os._exit(0)": False,
        "open('x', 'w').write('y')\ndef f(x): return x + 1": True,
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\nf = int": False,
        "def f(x):\n    while True: pass": False,
    }
    texts = [list(programs)[i % len(programs)] for i in range(count)]

    def is_correct(program: str) -> bool:
        return grade(program, "assert candidate(1) == 2", timeout_seconds=0.5).is_correct

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(is_correct, texts))

    assert results == [programs[text] for text in texts]


def test_fifty_programs_leave_no_process_file_or_descriptor() -> None:
    num_threads = threading.active_count()

    grade_many(50)  # what is left is looked for by `no_trace`

    assert threading.active_count() == num_threads


@pytest.mark.slow
def test_a_thousand_programs_leave_no_process_file_or_descriptor() -> None:
    grade_many(1000)
