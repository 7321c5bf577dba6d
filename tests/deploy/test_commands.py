"""Every command in the documents, and of a manifest, is one that the jobs understand."""

import itertools
import shlex

import pytest

from nanoray.serve.serve_config import KEYS_VARIABLE
from tests.deploy.documented import (
    Command,
    arguments_of_a_job,
    commands_of_docstrings,
    documented_commands,
    entrypoints,
    parse_as_its_job,
    split_assignments,
)
from tests.deploy.story import CLIENTS, ELSEWHERE, SERVERS, STORY, SUBMITTED

OURS = [c for c in documented_commands() if c.arguments_of_a_job is not None]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_job_takes_the_flags_that_a_document_gives_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in split_assignments(command.words)[0].items():
        monkeypatch.setenv(name, value)

    assert parse_as_its_job(command.arguments_of_a_job or (), monkeypatch) is not None


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
    shown += list(commands_of_docstrings())

    large = [
        arguments
        for arguments in shown
        if arguments[0] in TRAINING and max(depths_of(arguments), default=0) >= MANY_TIMES_DEPTH
    ]

    assert len(large) > 10
    assert [" ".join(a) for a in large if not {"--data", "--pretrain.data"} & set(a)] == []


def test_every_command_that_can_run_here_is_run_or_says_where() -> None:
    told = {str(command) for command in documented_commands() if command.runs_here}
    run = {step.command for step in (*STORY, *SUBMITTED, *SERVERS, *CLIENTS)}

    assert told == run | set(ELSEWHERE)
    assert not run & set(ELSEWHERE)
