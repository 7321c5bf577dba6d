"""What the doctor says: one finding per check, and the verdict over all of them."""

import io
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanoray.credentials import without_secrets

TABLE_WIDTH, LEAST_WIDTH = 120, 80
"""Columns where there is no terminal, and at least on one."""
MOST_NAMED = 3
"""So many of what is wrong are named; of the others the number is told."""


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    SKIPPED = "skipped"


STYLES = {
    Status.OK: "green",
    Status.WARNING: "yellow",
    Status.FAILED: "bold red",
    Status.SKIPPED: "dim",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    found: str
    """What was seen, with its numbers."""
    remedy: str = ""
    """What a person can do; empty where nothing has to be done."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a cluster and the run that is meant for it."""

    findings: tuple[Finding, ...]
    num_nodes: int
    seconds: float

    def having(self, status: Status) -> list[Finding]:
        """Choose the findings of one status."""
        return [finding for finding in self.findings if finding.status is status]

    @property
    def has_failed(self) -> bool:
        """Say whether the run would fail, or its result could not be trusted."""
        return bool(self.having(Status.FAILED))

    @property
    def verdict(self) -> str:
        """Say in one line what all findings come to."""
        counts = {status: len(self.having(status)) for status in Status}
        took = f"({self.num_nodes} nodes, {self.seconds:.0f} s)".replace("(1 nodes", "(1 node")
        warnings = f"{counts[Status.WARNING]} warning{'' if counts[Status.WARNING] == 1 else 's'}"
        if self.has_failed:
            named = ", ".join(finding.check for finding in self.having(Status.FAILED))
            return f"{counts[Status.FAILED]} FAILED: {named}; {warnings} {took}"
        return f"nothing failed, {warnings} {took}"

    def as_text(self, *, is_terminal: bool = False) -> str:
        """Write the table and the verdict, in colour and as wide as the terminal if it is one."""
        columns = shutil.get_terminal_size().columns if is_terminal else TABLE_WIDTH
        width = max(LEAST_WIDTH, min(columns, 2 * TABLE_WIDTH))
        table = Table("check", "", "found", "remedy", width=width)
        for finding in self.findings:
            # Text, because rich would take "[gpu]" in a plain string for markup.
            status = Text(finding.status.value, style=STYLES[finding.status])
            found = Text(without_secrets(finding.found))
            remedy = Text(without_secrets(finding.remedy))
            table.add_row(finding.check, status, found, remedy)
        text = io.StringIO()
        console = Console(file=text, width=width, force_terminal=is_terminal)
        console.print(table)
        return f"{text.getvalue()}{without_secrets(self.verdict)}"

    def as_json(self) -> str:
        """Write everything as JSON."""
        facts = {
            "failed": self.has_failed,
            "verdict": without_secrets(self.verdict),
            "num_nodes": self.num_nodes,
            "seconds": round(self.seconds, 1),
            "findings": [
                {name: without_secrets(text) for name, text in asdict(finding).items()}
                for finding in self.findings
            ],
        }
        return json.dumps(facts, indent=1)


def ok(check: str, found: str) -> Finding:
    """Report that nothing has to be done."""
    return Finding(check, Status.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    """Report what makes a run slower or less safe."""
    return Finding(check, Status.WARNING, found, remedy)


def failed(check: str, found: str, remedy: str) -> Finding:
    """Report what a run would die of."""
    return Finding(check, Status.FAILED, found, remedy)


def failed_with(check: str, error: Exception | str, otherwise: str) -> Finding:
    """Report an error, whose last sentence is the remedy.

    Args:
        check: that found it.
        error: of ours; that of a library is one sentence, without a remedy.
        otherwise: the remedy where the error has none.
    """
    text = str(error).strip() or type(error).__name__
    found, _, remedy = text.rpartition(". ")
    return failed(check, f"{found}.", remedy) if found else failed(check, text, otherwise)


def skipped(check: str, why: str) -> Finding:
    """Report that something could not be looked at."""
    return Finding(check, Status.SKIPPED, why)


def named(items: Iterable[str]) -> str:
    """List the first few names, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def gb(num_bytes: float) -> str:
    """Write a size."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:,.2f} MB"
