"""What a run has done so far and where its time went, for a person or a program."""

import contextlib
import io
import json
import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nanoray.cluster import connection
from nanoray.config import InputError, flag
from nanoray.events import failure_history, read_events
from nanoray.goodput import CATEGORIES, newest_account
from nanoray.metrics import read_metrics
from nanoray.ops.silence import silence_of
from nanoray.progress import duration
from nanoray.report import ReportFacts, read_facts, write_report
from nanoray.report_card import read_card
from nanoray.stages.pretrain import STAGE
from nanoray.storage import RunFolder, StageFolder, is_outage
from nanoray.storage_errors import describe, told_in_a_sentence
from nanoray.train.rollback import read_rollbacks

WATCH_SECONDS = 2.0

TOLD = {
    "train/loss": "loss, nats per token",
    "validation/bits_per_byte": "validation, bits per byte",
    "train/tokens_per_second": "tokens per second",
    "train/mfu": "utilization (MFU)",
    "train/skipped": "skipped steps",
    "checkpoint/stall_seconds": "stall of a save, seconds",
}
"""Values of which the newest is told, and their labels."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Tell what a run has done and where its time went, and write its report.html anew."""

    run: Annotated[str, tyro.conf.Positional]
    """Name of the run, or RUN/STAGE."""
    storage: str | None = None
    """Folder or address (s3://, gs://, ...) in which the run is; by default ./runs."""
    json: bool = False
    """Print JSON only."""
    card: bool = False
    """Print the scores of all stages in Markdown, and nothing else."""
    watch: bool = False
    """Show the tables anew every few seconds, until the run ends or Ctrl-C."""

    def __post_init__(self) -> None:
        given = [flag(name) for name in ("json", "card", "watch") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} each print in their own way. Give one of them."
            )


def report(config: ReportConfig) -> str:
    """Write the report of a run, and give its summary.

    Raises:
        InputError: there is no such run.
        StorageError: its storage cannot be read, or the report not be written.
    """
    storage = connection.absolute_address(config.storage or "runs")
    with told_in_a_sentence(storage):
        return report_in(storage, config)


def report_in(storage: str, config: ReportConfig) -> str:
    """Write the report of a run in a storage, and give its summary."""
    run, _, stage = config.run.partition("/")
    folder = RunFolder(storage, run).stage(stage or STAGE)
    if folder.read_config() is None:
        raise InputError(f"{folder} holds no run. Give the name of one, and its --storage.")
    if config.card:
        card = read_card(folder.run)
        if card is None:
            raise InputError(
                f"{folder.run} has no results. Make some: jobs/evaluate.py --run {run}"
            )
        return card.markdown()
    if config.watch:
        watch(folder)
    facts = summary_of(folder)
    # What is written of a run that goes on is old the next time.
    told = read_facts(folder) if folder.run.is_done(folder.name) else None
    write_report(folder, told or unfinished(folder, facts))
    return (
        json.dumps(as_json(facts), indent=1, allow_nan=False)
        if config.json
        else as_table(folder, facts)
    )


def watch(folder: StageFolder, console: Console | None = None) -> None:
    """Show how a run gets on, until its job has ended or somebody presses Ctrl-C."""
    shown: list[RenderableType] = []
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            problem = ""
            has_ended = False
            try:
                shown = tables(folder, summary_of(folder))
                has_ended = [event["event"] for event in read_events(folder)[-1:]] == ["stop"]
            except Exception as error:
                if not is_outage(error):
                    raise
                problem = f"{folder} cannot be read now ({describe(error)}); tried again"
            live.update(Group(*([Text(problem)] if problem else []), *shown), refresh=True)
            if has_ended:
                return
            time.sleep(WATCH_SECONDS)


def summary_of(folder: StageFolder) -> dict[str, Any]:  # Any: JSON
    """Give the newest values of a stage, and its time by category."""
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    newest: dict[str, Any] = {}
    for record in records:
        newest |= {name: value for name, value in record.items() if value is not None}
    events = read_events(folder)
    account = newest_account(events, records)
    return {
        "run": folder.run.run,
        "stage": folder.name,
        "step": newest.get("step", 0),
        "tokens": newest.get("tokens", 0),
        "values": {name: newest[name] for name in TOLD if name in newest},
        "groups": sum(event["event"] == "begin" for event in events),
        "failures": failure_history(events).failures,
        "causes": dict(Counter(e["cause"] for e in events if e["event"] == "failure")),
        "rollbacks": [rollback.to_json() for rollback in read_rollbacks(folder)],
        "seconds": account.seconds,
        "wall_seconds": account.total,
        "goodput": account.seconds["productive"] / account.total if account.total else None,
        "dollars": account.dollars,
        "silent": silence_of(records, events),
    }


def unfinished(folder: StageFolder, facts: dict[str, Any]) -> ReportFacts:  # Any: JSON
    """Give what can be said of a run that has not written a report yet."""
    commands = [event.get("command", "") for event in read_events(folder)]
    return ReportFacts(
        title=f"{folder.run.run} / {folder.name}",
        summary={label: value for label, value in lines_of(facts).items() if value},
        derivation={},
        resume_command=next(filter(None, reversed(commands)), ""),
        samples=[],
    )


def lines_of(facts: dict[str, Any]) -> dict[str, str]:  # Any: JSON
    """Write the summary as labels and values."""
    values = {TOLD[name]: f"{value:,.4g}" for name, value in facts["values"].items()}
    goodput = facts["goodput"]
    return {
        "steps": f"{facts['step']:,}",
        "tokens": f"{facts['tokens']:,}",
        **values,
        "starts of the workers": f"{facts['groups']}, after {facts['failures']} failures",
        "failures told by the workers": ", ".join(
            f"{cause}: {count}" for cause, count in facts["causes"].items()
        ),
        "rollbacks": f"{len(facts['rollbacks'])}",
        "goodput": "unknown" if goodput is None else f"{100 * goodput:.1f} %",
        "cost so far": "" if facts["dollars"] is None else f"${facts['dollars']:,.2f}",
    }


def as_table(folder: StageFolder, facts: dict[str, Any]) -> str:  # Any: JSON
    """Write summary and account for a terminal."""
    text = io.StringIO()
    Console(file=text, width=100).print(*tables(folder, facts))
    return f"{text.getvalue()}\nreport: {folder}/report.html"


def tables(folder: StageFolder, facts: dict[str, Any]) -> list[RenderableType]:  # Any: JSON
    """Give summary and account, and say above them if nothing has been told for long."""
    summary = Table(title=f"{folder.run.run} / {folder.name}", show_header=False)
    for label, value in lines_of(facts).items():
        if not value:
            continue
        summary.add_row(label, value)
    account = Table("where the time went", "share", "time")
    for name, seconds in facts["seconds"].items():
        share = f"{100 * seconds / max(facts['wall_seconds'], 1e-9):.1f} %"
        account.add_row(CATEGORIES[name], share, duration(seconds))
    account.add_section()
    account.add_row("all", "100 %", duration(facts["wall_seconds"]))
    # At the top: what does not fit a terminal is cut off at the bottom.
    return [*([Text(facts["silent"])] if facts["silent"] else []), summary, account]


def as_json(value: Any) -> Any:  # Any: JSON, and numbers that it cannot hold
    """Put null in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
