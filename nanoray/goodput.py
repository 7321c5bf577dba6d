"""Where a run's time went, from its very first start on, without a remainder.

Rank 0 books all time that has passed since it last looked to one category, so the categories always
add up to the time since the first start. Within a process that time goes on evenly, however the
machine's clock is set; between two, their clocks are compared. The sums stand in each line of
metrics.jsonl. What lies between the last line of a group and the first step of the next is booked
by the events of `events.py`, and the steps that were lost in between are moved to `recomputed`.

The money stands beside the time. Each group tells with its beginning what an hour of all that it
holds costs, and while it is there every second that is booked adds to the sum.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from nanoray.events import DONE, Event, append_event, read_events
from nanoray.metrics import Records, read_metrics
from nanoray.storage import StageFolder

CATEGORIES = {
    "productive": "steps that count",
    "skipped": "steps that the guard skipped",
    "recomputed": "steps that were lost and made again",
    "start_up": "starting, with the first step of each group, and ending",
    "data_wait": "waiting for data",
    "checkpoint_stall": "standing still for checkpoints",
    "validation": "validation",
    "waiting": "down after a failure, or waiting for machines",
    "stopped": "not running: nobody had started the job",
}
"""What time is spent on, and how a person is told."""

UNPAID = ("waiting", "stopped")
"""In which no workers are held."""

DOLLARS = "cost/dollars"
"""The name of the money in metrics.jsonl."""
PRICE = "dollars_per_hour"
"""The name of a price among the values of an event."""

AFTER = {
    "start": "start_up",
    "submit": "waiting",
    "begin": "start_up",
    "account": "start_up",
    "failure": "waiting",
    "growth": "waiting",
    "stop": "stopped",
}
"""What a run does from an event on."""


def steady_clock() -> Callable[[], float]:
    """Give a clock that begins with this machine's and goes on evenly, however that one is set."""
    began = time.time() - time.monotonic()
    return lambda: began + time.monotonic()


class Account:
    """Seconds by category, all time since `origin`, and the dollars that they have cost."""

    def __init__(
        self,
        origin: float,
        seconds: dict[str, float] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Go on from the sums of an earlier account that began at `origin`, or begin there."""
        self.origin, self.clock = origin, clock or steady_clock()
        self.ahead = 0.0
        """By how much the account is ahead of a clock that was set back between two processes."""
        self.seconds = {name: (seconds or {}).get(name, 0.0) for name in CATEGORIES}
        self.dollars: float | None = None
        """None as long as nothing that was held has a price."""
        self.unpriced_seconds = 0.0
        """Of workers that were held before anything had a price."""
        self.dollars_per_hour = 0.0
        """Of what is held since the last event."""
        self.is_first_step = True
        self.doing = "waiting"
        """What the run does since the last event."""

    @property
    def total(self) -> float:
        """All seconds booked."""
        return sum(self.seconds.values())

    def spend(self, category: str, until: float | None = None) -> float:
        """Book the time that has passed, and give it."""
        now = self.clock() + self.ahead if until is None else until
        passed = max(0.0, now - self.origin - self.total)
        self.seconds[category] += passed
        if self.dollars is not None and category not in UNPAID:
            self.dollars += passed / 3600 * self.dollars_per_hour
        return passed

    def spend_step(self, data_wait_seconds: float, *, skipped: bool) -> None:
        """Book a step with its wait for data; the first one of a group, which compiles, as such."""
        if self.is_first_step:
            self.is_first_step = False
            self.spend("start_up")
            return
        category = "skipped" if skipped else "productive"
        waited = min(data_wait_seconds, self.spend(category))
        self.seconds[category] -= waited
        self.seconds["data_wait"] += waited

    def values(self) -> dict[str, float]:
        """Give the sums under their names in metrics.jsonl."""
        values = {key(name): round(seconds, 3) for name, seconds in self.seconds.items()}
        return values if self.dollars is None else {**values, DOLLARS: round(self.dollars, 6)}

    def catch_up(self) -> None:
        """Go on from here, where the clock was set back since the account was written down."""
        self.ahead = max(self.ahead, self.origin + self.total - self.clock())

    def book_events(self, events: Sequence[Event]) -> None:
        """Book the time between events that lie behind the last step of a group."""
        if self.dollars is None:
            self.unpriced_seconds = paid_seconds(self.seconds)
            self.dollars = self.cost_without_price(events)
        kinds = [event["event"] for event in events]
        newest = max((i for i, kind in enumerate(kinds) if kind == "account"), default=-1)
        ahead = before = 0.0
        for i, (kind, event) in enumerate(zip(kinds, events, strict=True)):
            until = self.origin + self.total
            was_set_back, before = i > newest and event["time"] < before, event["time"]
            if i == newest:
                told = sum(event["seconds"].values())
                self.ahead = ahead = max(0.0, self.origin + told - float(event["time"]))
            if was_set_back:
                ahead = max(ahead, until - event["time"])
            at = float(event["time"]) + ahead
            if at >= until or was_set_back:  # it is not in the sums
                if kind == "start":  # whatever ran before it was killed, or stopped
                    self.doing = "stopped"
                elif kind == "stop" and event["why"] == DONE and self.doing == "waiting":
                    self.doing = "start_up"
                self.spend(self.doing, at)
                self.doing = AFTER[kind]
            if kind == "start":  # its driver prepares, and holds no workers yet
                self.dollars_per_hour = 0.0
            self.dollars_per_hour = event.get(PRICE, self.dollars_per_hour)

    def cost_without_price(self, events: Sequence[Event]) -> float | None:
        """Give what the unpriced seconds cost; None where no price is known.

        Older runs have them, whose newest price then counts, and runs on CPUs from before somebody
        asked for their cost, for which the first one does.
        """
        until = self.origin + self.total
        prices = [(float(e["time"]), float(e[PRICE])) for e in events if PRICE in e]
        known = [price for at, price in prices if at <= until][-1:]
        known += [price for _, price in prices[:1]]
        return known[0] * self.unpriced_seconds / 3600 if known else None


def paid_seconds(seconds: dict[str, float]) -> float:
    """Give the time for which a run pays: all but what it did not run, or waited for workers."""
    return sum(each for name, each in seconds.items() if name not in UNPAID)


def key(category: str) -> str:
    """Give the name of a category in metrics.jsonl."""
    return f"goodput/{category}_seconds"


def sums_of(record: dict[str, Any]) -> dict[str, float]:  # Any: JSON
    """Take the sums from a line of metrics.jsonl; empty where it has none."""
    return {name: record[key(name)] for name in CATEGORIES if key(name) in record}


def newest_account(
    events: list[Event], records: Records, clock: Callable[[], float] | None = None
) -> Account:
    """Give the account as far as steps and events tell."""
    clock = clock or steady_clock()
    told: list[tuple[dict[str, float], float | None]] = [
        (sums_of(record), record.get(DOLLARS)) for record in records[-1:]
    ]
    told += [(e["seconds"], e.get("dollars")) for e in events if e["event"] == "account"][-1:]
    seconds, dollars = max(told, key=lambda one: sum(one[0].values()), default=({}, None))
    account = Account(float(events[0]["time"]) if events else clock(), seconds, clock)
    account.dollars = dollars
    account.book_events(events)
    return account


def read_account(folder: StageFolder) -> Account:
    """Give the account of a stage up to its last step or event."""
    return newest_account(
        read_events(folder), read_metrics(folder.fs, folder.path("metrics.jsonl"))
    )


def open_account(
    folder: StageFolder, step: int, clock: Callable[[], float] | None = None
) -> Account:
    """Go on with the account of a stage, for a group that begins at a step.

    To be called before metrics.jsonl is cut back: what was lost stands only there.
    """
    events, records = (
        read_events(folder),
        read_metrics(folder.fs, folder.path("metrics.jsonl")),
    )
    account = newest_account(events, records, clock)
    account.spend(account.doing)
    account.catch_up()
    counted = {record["step"]: sums_of(record) for record in records}.get(step, {})
    # The first steps of a branch are its trunk's, and have no sums.
    if (
        step == 0
        or counted
        or not any(sums_of(record) for record in records if record["step"] <= step)
    ):
        lost = account.seconds["productive"] - counted.get("productive", 0.0)
        account.seconds["productive"] -= max(0.0, lost)
        account.seconds["recomputed"] += max(0.0, lost)
    values = {} if account.dollars is None else {"dollars": account.dollars}
    facts = {"step": step, "seconds": account.seconds, **values}
    append_event(folder, "account", time=account.clock(), **facts)
    return account
