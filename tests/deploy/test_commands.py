"""Every command in the documents, and of a manifest, is one that the jobs understand."""

import itertools
import shlex
from pathlib import Path

import pytest

from nanoray.serve.serve_config import KEYS_VARIABLE
from tests.deploy.documented import (
    ROOT,
    Command,
    arguments_of_a_job,
    commands_of_docstrings,
    documented_commands,
    entrypoints,
    inline_commands,
    parse_as_its_job,
    split_assignments,
)
from tests.deploy.story import CLIENTS, NOT_RUN, RUN_BY, SERVERS, STORY, SUBMITTED

OURS = [c for c in documented_commands() if c.arguments_of_a_job is not None]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_job_takes_the_flags_that_a_document_gives_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in split_assignments(command.words)[0].items():
        monkeypatch.setenv(name, value)

    assert parse_as_its_job(command.arguments_of_a_job or (), monkeypatch) is not None


@pytest.mark.parametrize("arguments", inline_commands(), ids=" ".join)
def test_a_job_takes_the_flags_that_a_sentence_gives_it(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_as_its_job(arguments, monkeypatch) is not None


@pytest.mark.parametrize("file", entrypoints())
def test_a_job_takes_the_flags_that_a_manifest_gives_it(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of_a_job(shlex.split(entrypoints()[file]))

    assert arguments is not None
    assert parse_as_its_job(arguments, monkeypatch) is not None


@pytest.mark.parametrize("arguments", commands_of_docstrings(), ids=" ".join)
def test_a_job_takes_the_flags_that_a_docstring_gives_it(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "secret")  # as the one that serves everybody sets it

    assert parse_as_its_job(arguments, monkeypatch) is not None


def test_every_job_among_the_manifests_is_looked_at() -> None:
    assert len(entrypoints()) == 6


TRAINING = ("jobs/pretrain.py", "jobs/pipeline.py", "jobs/sweep.py", "jobs/doctor.py")
DEPTHS = ("--depth", "--depths")
MANY_TIMES_DEPTH = 10
"""From here on a run reads the embedded 20 MB of text hundreds of times."""


def depths_of(arguments: tuple[str, ...]) -> list[int]:
    """Give what --depth or --depths says."""
    pairs = itertools.pairwise(arguments)
    return [int(d) for name, value in pairs if name in DEPTHS for d in value.split(",")]


def test_no_large_run_is_shown_that_would_learn_from_the_embedded_texts() -> None:
    shown = [c.arguments_of_a_job for c in OURS if c.arguments_of_a_job]
    shown += [arguments_of_a_job(shlex.split(line)) or () for line in entrypoints().values()]
    shown += [*commands_of_docstrings(), *inline_commands()]

    large = [
        arguments
        for arguments in shown
        if arguments[0] in TRAINING and max(depths_of(arguments), default=0) >= MANY_TIMES_DEPTH
    ]

    assert len(large) > 10
    assert [" ".join(a) for a in large if not {"--data", "--pretrain.data"} & set(a)] == []


def test_every_command_that_can_run_here_is_run_or_says_why_not() -> None:
    told = [str(command) for command in documented_commands() if command.runs_here]
    run = [step.command for step in (*STORY, *SUBMITTED, *SERVERS, *CLIENTS)]

    known = [*run, *RUN_BY, *NOT_RUN]
    assert sorted(known) == sorted(set(known))
    assert set(told) == set(known)


def flags_in_the_story(job: str) -> set[str]:
    """Give the flags with which the story calls a job."""
    steps = (*STORY, *SUBMITTED, *SERVERS, *CLIENTS)
    called = [shlex.split(f"{step.command} {step.instead}") for step in steps]
    return {word for words in called if job in words for word in words if word.startswith("--")}


def looked_for(command: str) -> list[set[str]]:
    """Give what a test of a command must have, each in one of several spellings."""
    if command.startswith("export "):
        return [{command.removeprefix("export ").split("=")[0]}]
    assigned, words = split_assignments(shlex.split(command))
    arguments = arguments_of_a_job(words)
    if arguments is None:
        flags = [word.split("=")[0] for word in words if word.startswith("--")]
        return [{word} for word in (*assigned, *words[:2], *flags) if "~" not in word]
    flags = [word.split("=")[0] for word in arguments[1:] if word.startswith("--")]
    fresh = [flag for flag in flags if flag not in flags_in_the_story(arguments[0])]
    as_field = {flag: flag.removeprefix("--").replace("-", "_") + "=" for flag in fresh}
    return [{Path(arguments[0]).name}, *({flag, as_field[flag]} for flag in fresh)]


@pytest.mark.parametrize("command", RUN_BY)
def test_the_test_that_a_command_is_left_to_is_there_and_has_its_flags(command: str) -> None:
    places = [place.partition("::")[::2] for place in RUN_BY[command]]
    sources = [(ROOT / file).read_text() for file, _ in places]

    for (file, test), source in zip(places, sources, strict=True):
        assert f"\ndef {test}(" in source or not test, f"{file} has no {test}"
    assert any(test for _, test in places)
    missing = [
        spellings
        for spellings in looked_for(command)
        if not any(spelling in source for spelling in spellings for source in sources)
    ]
    assert missing == []


def test_a_reference_to_a_test_that_does_something_else_is_found() -> None:
    grading = looked_for("python jobs/forecast.py --grade d34")

    assert grading == [{"forecast.py"}, {"--grade", "grade="}]
    assert "--grade" not in (ROOT / "tests" / "ops" / "test_forecast.py").read_text()
