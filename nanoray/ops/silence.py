"""Whether a run that has not ended has told nothing for longer than it usually takes.

A driver that was killed with `kill -9` says nothing, so its run looks as one that is at work. Only
the times of what it has told so far are known: steps, and events such as a start or a failure.
"""

import itertools
import time

from nanoray.events import Event
from nanoray.metrics import Records
from nanoray.progress import duration

LEAST_SECONDS = 60.0
"""On an object store the log of the steps is written only every half a minute."""
TIMES_USUAL = 3.0
"""By how much the longest of the last gaps may be exceeded, before that is told."""
NUM_GAPS = 500
"""Between validations there may be 250 steps, and their gaps are the longest."""
START_SECONDS = 600.0
"""Silence that is usual after an event: workers start, a checkpoint is read, a model compiled."""

TOLD = {
    "start": "the job was started",
    "submit": "workers were asked for",
    "begin": "workers began",
    "account": "workers began",
    "failure": "workers failed",
    "growth": "workers made way for more of them",
}
"""Events after which something else is to come, in the words of the line."""
WAITING = ("submit", "failure", "growth")
"""Events after which a job may wait for machines as long as it takes."""


def silence_of(records: Records, events: list[Event], now: float | None = None) -> str | None:
    """Say how long ago a run told its last step; None where it has ended, or told so lately.

    Args:
        records: of its metrics.jsonl.
        events: of its events.jsonl.
        now: seconds since 1970; by default this moment.
    """
    now = time.time() if now is None else now
    steps = [float(record["time"]) for record in records if "time" in record]
    event = events[-1] if events else None
    if event is not None and event["event"] not in TOLD:
        return None
    told: list[str] = []
    waits = ""
    newest, patience = (steps[-1], step_patience(steps, events)) if steps else (0.0, 0.0)
    if steps:
        told.append(f"last step {duration(now - newest)} ago")
    if event is not None and float(event["time"]) >= newest:
        newest, patience = float(event["time"]), START_SECONDS
        told.append(f"{TOLD[event['event']]} {duration(now - newest)} ago")
        waits = "; it may wait for machines" if event["event"] in WAITING else ""
    if not told or now - newest <= patience:
        return None
    return f"{', '.join(told)}; the job has told nothing since{waits}"


def step_patience(steps: list[float], events: list[Event]) -> float:
    """Give the silence after a step that is nothing unusual, in seconds.

    Validations, checkpoints and evaluations lie between two steps; the time of a new start does
    not count as a step's.
    """
    starts = [float(event["time"]) for event in events]
    gaps = [
        after - before
        for before, after in itertools.pairwise(steps[-NUM_GAPS - 1 :])
        if not any(before <= start < after for start in starts)
    ]
    return max(LEAST_SECONDS, TIMES_USUAL * max(gaps, default=0.0))
