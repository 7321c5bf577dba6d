"""The commands that the documents show, as a reader would type them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/clusters.md",
    "docs/measurements.md",
    "docs/runbook.md",
)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
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
        for at, word in enumerate(self.words[:-1]):
            if word == "python" and self.words[at + 1].startswith("jobs/"):
                return self.words[at + 1 :]
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


def split_assignments(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Give the variables that are set before a command, and the command."""
    at = next(i for i, word in enumerate(words) if "=" not in word)
    return dict(word.split("=", 1) for word in words[:at]), list(words[at:])
