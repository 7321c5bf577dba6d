"""The rules of CONTRIBUTING.md that a linter does not know."""

import ast
import importlib
import inspect
import pickle
import sys
import typing
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("nanoray", "evals", "jobs", "scripts", "tests")

MOST_FILE_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_JOB_LINES = 40

WITHOUT_TEST_FILE: dict[str, str] = {}


def python_files(*folders: str) -> list[Path]:
    """List the Python files of some folders, and those at the top of the repository."""
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return sorted([*files, *ROOT.glob("*.py")])


def name_of(file: Path) -> str:
    """Give a file's path in the repository."""
    return str(file.relative_to(ROOT))


def long_functions(source: str) -> list[str]:
    """List the functions that do not fit one screen."""
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lines = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    return [f"{name}: {count}" for name, count in lines.items() if count > MOST_FUNCTION_LINES]


def config_classes(source: str) -> list[ast.ClassDef]:
    """List the dataclasses that are read from a command line or saved, by how they are written."""
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and node.name.endswith(("Config", "Bench"))
        and any("kw_only=True" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]


def undocumented_fields(config: ast.ClassDef) -> list[str]:
    """List the fields of a class that have no string under them."""
    return [
        f"{config.name}.{ast.unparse(node.target)}"
        for node, after in zip(config.body, [*config.body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign) and not is_string(after)
    ]


def is_string(node: ast.stmt | None) -> bool:
    """Say whether a statement is a string with text in it."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and bool(value.value)


def exception_classes() -> list[type[BaseException]]:
    """Import all of nanoray, and list the exceptions that it defines."""
    found: list[type[BaseException]] = []
    for file in (ROOT / "nanoray").rglob("*.py"):
        name = name_of(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = importlib.import_module(name)
        found += [
            member
            for member in vars(module).values()
            if inspect.isclass(member)
            and issubclass(member, BaseException)
            and member.__module__ == name
        ]
    return found


def example(cls: type[BaseException]) -> BaseException:
    """Make an exception, each argument of the type that its annotation names."""
    if "__init__" not in vars(cls):
        return cls("a text")
    values: dict[object, object] = {str: "a text", int: 3, float: 1.5, bool: True}
    values |= {str | None: "a text", dict[str, str] | None: {"a": "text"}}
    hints = typing.get_type_hints(cls.__init__)
    names = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    return cls(*(values[hints[name]] for name in names))


def pickles(error: BaseException) -> bool:
    """Say whether an exception comes out of another process as it went in."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except TypeError:
        return False
    return (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_no_file_is_too_long() -> None:
    lines = {name_of(file): len(file.read_text().splitlines()) for file in python_files(*FOLDERS)}

    too_long = {name: count for name, count in lines.items() if count > MOST_FILE_LINES}

    assert too_long == {}


def test_every_function_fits_one_screen() -> None:
    found = {name_of(file): long_functions(file.read_text()) for file in python_files(*FOLDERS)}

    too_long = {name: functions for name, functions in found.items() if functions}

    assert too_long == {}


def test_every_field_of_a_config_is_documented() -> None:
    configs = [
        config
        for file in python_files("nanoray", "evals")
        for config in config_classes(file.read_text())
    ]

    undocumented = [field for config in configs for field in undocumented_fields(config)]

    assert undocumented == []


def test_every_config_that_a_job_parses_is_checked_for_documentation() -> None:
    checked = {
        config.name
        for file in python_files("nanoray", "evals")
        for config in config_classes(file.read_text())
    }

    classes_in_jobs = {
        alias.name
        for file in python_files("jobs")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("nanoray", "evals"))
        for alias in node.names
        if alias.name.endswith(("Config", "Bench"))
    }

    assert classes_in_jobs
    assert classes_in_jobs <= checked


def test_every_module_has_its_test_file() -> None:
    expected = {
        name_of(file): f"tests/{folder / f'test_{file.name}'}"
        for top in ("nanoray", "evals")
        for file in (ROOT / top).rglob("*.py")
        if file.name != "__init__.py"
        for folder in [file.parent.relative_to(ROOT / "nanoray" if top == "nanoray" else ROOT)]
    }

    missing = {module for module, test in expected.items() if not (ROOT / test).exists()}

    assert missing == set(WITHOUT_TEST_FILE)


def test_every_exception_survives_the_way_to_another_process() -> None:
    errors = [example(cls) for cls in exception_classes()]

    lost = [type(error).__name__ for error in errors if not pickles(error)]

    assert len(errors) > 5
    assert lost == []


def test_no_job_hides_a_module_that_others_import() -> None:
    jobs = {file.stem for file in (ROOT / "jobs").glob("*.py")}
    # `evaluate` is there for lm-eval alone, which no job imports.
    installed = set(packages_distributions()) - {"evaluate"}

    hidden = jobs & (set(sys.stdlib_module_names) | installed)

    assert "numpy" in installed
    assert hidden == set()


def test_a_job_is_a_docstring_and_one_call() -> None:
    jobs = {file.name: file.read_text() for file in (ROOT / "jobs").glob("*.py")}

    too_long = {name for name, text in jobs.items() if len(text.splitlines()) > MOST_JOB_LINES}
    without_command = {
        name
        for name, text in jobs.items()
        if f"python jobs/{name}" not in (ast.get_docstring(ast.parse(text)) or "")
    }

    assert (too_long, without_command) == (set(), set())


def test_a_planted_long_function_is_found() -> None:
    source = "def long():\n" + "    x = 1\n" * MOST_FUNCTION_LINES

    found = long_functions(source)

    assert found == [f"long: {MOST_FUNCTION_LINES + 1}"]


@pytest.mark.parametrize("after", ["", '    """"""\n', "    1\n", "    b: int\n    'about b'\n"])
def test_a_planted_field_without_its_string_is_found(after: str) -> None:
    source = f"@dataclass(kw_only=True)\nclass AConfig:\n    a: int = 1\n{after}"

    fields = [field for config in config_classes(source) for field in undocumented_fields(config)]

    assert fields == ["AConfig.a"]


class ForgetfulError(Exception):
    """What a named error must not be: its constructor's arguments are lost."""

    def __init__(self, path: str, step: int) -> None:
        super().__init__(f"{path} at {step}")


def test_a_planted_exception_that_does_not_pickle_is_found() -> None:
    error = example(ForgetfulError)

    survives = pickles(error)

    assert not survives


def test_no_document_keeps_the_marks_of_a_merge() -> None:
    marks = ("<" * 7 + " ", ">" * 7 + " ")
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.*")]

    marked = [
        name_of(f)
        for f in files
        if f.is_file() and f.suffix != ".png"
        if any(line.startswith(marks) for line in f.read_text().splitlines())
    ]

    assert len(files) > 10
    assert not marked
