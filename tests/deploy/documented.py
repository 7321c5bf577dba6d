"""The commands that the documents show, as a reader would type them."""

import ast
import re
import runpy
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from nanoray import config

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/architecture.md",
    "docs/clusters.md",
    "docs/measurements.md",
    "docs/runbook.md",
)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(python jobs/[^`]+)`(?!`)")
ELSEWHERE = re.compile(r"^#+ .*\(needs (?:a cloud|a cluster|Slurm)\)", re.MULTILINE)
"""The heading of a section whose commands this machine cannot run."""


@dataclass(frozen=True)
class Command:
    """A line of a block of shell commands, without its comment."""

    document: str
    words: tuple[str, ...]
    runs_here: bool
    """It stands in no section that is marked as needing a cloud, a cluster or Slurm."""

    def __str__(self) -> str:
        return shlex.join(self.words)

    @property
    def arguments_of_a_job(self) -> tuple[str, ...] | None:
        """What follows `python`, where a job is called, by itself or through `ray job submit`."""
        return arguments_of_a_job(self.words)


def arguments_of_a_job(words: Sequence[str]) -> tuple[str, ...] | None:
    """Give what follows `python` where a job is called, the job itself first."""
    for at, word in enumerate(words[:-1]):
        if word == "python" and words[at + 1].startswith("jobs/"):
            return tuple(words[at + 1 :])
    return None


def documented_commands() -> list[Command]:
    """Read all commands of all documents, in their order, each once."""
    found: dict[tuple[str, ...], Command] = {}
    for document in DOCUMENTS:
        for section in re.split(r"(?m)^(?=## )", (ROOT / document).read_text()):
            here = ELSEWHERE.search(section) is None
            for block in BLOCK.findall(section):
                for line in block.replace("\\\n", " ").splitlines():
                    for part in re.split(r"\s&&\s", line):
                        words = tuple(shlex.split(part, comments=True))
                        if words:
                            found.setdefault(words, Command(document, words, here))
    return list(found.values())


def inline_commands() -> list[tuple[str, ...]]:
    """Read the jobs that are called within a sentence: each job's file and its flags."""
    found: dict[tuple[str, ...], None] = {}
    for document in DOCUMENTS:
        for command in INLINE.findall(BLOCK.sub("", (ROOT / document).read_text())):
            found[arguments_of_a_job(shlex.split(command)) or ()] = None
    return list(found)


def split_assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Give the variables that are set before a command, and the command."""
    at = next(i for i, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:at]), list(words[at:])


def entrypoints() -> dict[str, str]:
    """Read what each job of deploy/kuberay runs, by the name of its file."""
    return {
        file.name: document["spec"]["entrypoint"]
        for file in sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document and document["kind"] == "RayJob"
    }


def commands_of_docstrings() -> list[tuple[str, ...]]:
    """Read what the jobs' docstrings show: each job's file and its flags, also over two lines."""
    found: list[tuple[str, ...]] = []
    for job in sorted((ROOT / "jobs").glob("*.py")):
        text = (ast.get_docstring(ast.parse(job.read_text())) or "").partition("\n")[2]
        for line in re.sub(r"\n *(?=--)", " ", text).splitlines():
            arguments = arguments_of_a_job(shlex.split(line, comments=True))
            if arguments is not None:
                found.append(arguments)
    return found


def parse_as_its_job(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Parse the flags of a job's command as the job itself does; SystemExit if it takes them not.

    Args:
        arguments: the job's file and its flags.
        monkeypatch: keeps the job from running.
    """
    job, *flags = arguments
    asked: list[Any] = []  # Any: a dataclass or a union of them
    monkeypatch.setattr(config, "run_job", lambda cls, _: asked.append(cls))
    runpy.run_path(str(ROOT / job), run_name="__main__")
    return tyro.cli(asked[0], args=flags, config=(tyro.conf.FlagCreatePairsOff,))
