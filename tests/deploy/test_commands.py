"""Every command in the documents is one that the jobs understand."""

import runpy
from typing import Any

import pytest
import tyro

from nanoray import config
from tests.deploy.documented import ROOT, Command, documented_commands, split_assignments
from tests.deploy.story import CLIENTS, ELSEWHERE, SERVERS, STORY, SUBMITTED

OURS = [c for c in documented_commands() if c.arguments_of_a_job is not None]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_job_takes_the_flags_that_a_document_gives_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, *flags = command.arguments_of_a_job or ()
    for name, value in split_assignments(command.words)[0].items():
        monkeypatch.setenv(name, value)
    asked: list[Any] = []  # Any: a dataclass or a union of them
    monkeypatch.setattr(config, "run_job", lambda cls, _: asked.append(cls))

    runpy.run_path(str(ROOT / job), run_name="__main__")

    assert tyro.cli(asked[0], args=flags, config=(tyro.conf.FlagCreatePairsOff,)) is not None


def test_every_command_that_can_run_here_is_run_or_says_where() -> None:
    told = {str(command) for command in documented_commands() if command.runs_here}
    run = {step.command for step in (*STORY, *SUBMITTED, *SERVERS, *CLIENTS)}

    assert told == run | set(ELSEWHERE)
    assert not run & set(ELSEWHERE)
