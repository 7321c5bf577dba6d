"""When a stage was started, began and ended: events.jsonl, to which every start adds lines.

Unlike metrics.jsonl it is never cut back. Events, in the order of a run's life:

    start    somebody started the job
    submit   it asked the cluster for workers; older runs told `dollars_per_hour` of the most here
    begin    a group of workers begins: `attempt`, `step` from which it goes on, `num_workers`,
             and where they have a price `dollars_per_hour` of all that it holds
    account  it goes through its first step: seconds and dollars spent so far, see `goodput.py`
    failure  it failed: `cause`, `rank`, and whether it starts `again`
    growth   it made way for a larger one
    stop     the job ended, and says `why`; a job that was killed says nothing
"""

import json
import os
import time
from dataclasses import dataclass
from typing import Any

from nanoray.metrics import read_metrics
from nanoray.storage import StageFolder, is_local

Event = dict[str, Any]  # Any: JSON

DONE, INTERRUPTED = "done", "interrupted"
"""Ends that are no failures."""


def append_event(folder: StageFolder, event: str, **values: Any) -> None:  # Any: JSON
    """Add an event, by default of this moment; it is durable when this returns."""
    path = folder.path("events.jsonl")
    line = (json.dumps({"time": time.time(), "event": event, **values}) + "\n").encode()
    if not is_local(folder.fs):  # nothing can be appended to an object, and its writers take turns
        lines = [json.dumps(old) + "\n" for old in read_events(folder)]
        folder.fs.pipe_file(path, "".join(lines).encode() + line)
        return
    os.makedirs(folder.path(), exist_ok=True)
    with open(path, "ab+") as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            line = b"\n" + line  # a crash tore the last line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_events(folder: StageFolder) -> list[Event]:
    """Read all events of a stage; none for one that has not begun."""
    return read_metrics(folder.fs, folder.path("events.jsonl"))


@dataclass(frozen=True)
class FailureHistory:
    """How often a stage has failed in which time."""

    failures: int = 0
    seconds: float = 0.0
    """In which the job was running."""


def failure_history(events: list[Event]) -> FailureHistory:
    """Count groups and jobs that ended without being done or interrupted by a person."""
    failures, seconds = 0, 0.0
    began: float | None = None  # when the job that is running was started
    running = False  # a group of workers
    told = False  # the last event but accounts was its failure
    last = 0.0
    for event in events:
        kind, now = event["event"], float(event["time"])
        if kind in ("start", "begin", "failure") and running:
            failures += 1
        if kind == "stop" and event["why"] not in (DONE, INTERRUPTED) and not told:
            failures += 1
        if kind in ("start", "stop") and began is not None:
            seconds += max(0.0, (now if kind == "stop" else last) - began)
            began = None
        if kind in ("start", "begin") and began is None:
            began = now
        running = kind in ("begin", "account")
        told = kind == "failure"
        last = now
    return FailureHistory(failures, seconds + (max(0.0, last - began) if began is not None else 0))
