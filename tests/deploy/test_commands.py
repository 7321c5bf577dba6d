"""Every command in the documents, and of a manifest, is one that the jobs understand."""

import shlex

import pytest

from tests.deploy.documented import (
    Command,
    arguments_of_a_job,
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


def test_every_job_among_the_manifests_is_looked_at() -> None:
    assert len(entrypoints()) == 6


def test_every_command_that_can_run_here_is_run_or_says_where() -> None:
    told = {str(command) for command in documented_commands() if command.runs_here}
    run = {step.command for step in (*STORY, *SUBMITTED, *SERVERS, *CLIENTS)}

    assert told == run | set(ELSEWHERE)
    assert not run & set(ELSEWHERE)
