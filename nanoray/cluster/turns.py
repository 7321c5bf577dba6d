"""Whose turn it is on a cluster that several runs share.

A run takes workers, and a CPU for its stream. Ray lets the workers of one more run take the CPUs
that the streams of all others need, and then none of them goes on. So a run takes a ticket from the
cluster's key-value store before it asks for workers, and waits until those with smaller tickets
leave it room. Nobody is overtaken: a large run that waits is not starved by small ones.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ray.experimental import internal_kv

from nanoray.cluster.background import repeated
from nanoray.cluster.connection import Resources, cluster_total
from nanoray.data.feed import STREAM_CPUS
from nanoray.progress import duration

NAMESPACE = "nanoray"
PREFIX = "turn "
LOOK_SECONDS = 2.0
"""Between two looks of a run that waits."""
BEAT_SECONDS = 5.0
ROUNDING = 1e-6
"""Of CPUs, which may be fractions."""
LAPSE_SECONDS = 60.0
"""A run that was not heard of for so long was killed, and its place is given away."""
TELL_SECONDS = 600.0
"""A run that waits says so this often, and whenever those before it change."""


@dataclass
class Ticket:
    """What a run holds, or waits for."""

    run: str
    cpus: float
    gpus: float
    beat: int = 0
    """Counts up while the run lives. Clocks of different machines are not compared."""
    has_left: bool = False


def needs(resources: Resources, workers: int) -> tuple[float, float]:
    """Give the CPUs and GPUs that a run takes with so many workers."""
    each = resources.each()
    return (
        workers * each["CPU"] + STREAM_CPUS,
        workers * each.get("GPU", 0.0) + resources.gpus_beside,
    )


class Turn:
    """A run's place among the runs of the cluster that this process is connected to."""

    def __init__(self, run: str, resources: Resources) -> None:
        self.resources = resources
        least, most = resources.num_workers
        self.least = needs(resources, least)
        self.ticket = Ticket(run, *needs(resources, most))
        self.number = self._take_number()
        self.beaten = time.monotonic()
        self.seen: dict[int, tuple[int, float]] = {}
        """Of every ticket its newest beat, and since when it has been the newest."""

    def _take_number(self) -> int:
        """Write the ticket under the first number after all that were ever given.

        The largest one is never deleted, so that a later run's is larger.
        """
        number = max(_numbers(), default=0) + 1
        while _write(number, self.ticket, only_new=True):
            number += 1
        return number

    def wait(self, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        """Return when the runs before this one leave it room; says for what it waits."""
        began, told, before = time.monotonic(), 0.0, None
        while True:
            held = self._held_before()
            if self._has_room(held):
                break
            now = time.monotonic()
            if held != before or now - told >= TELL_SECONDS:
                say(self._describe(held))
                told, before = now, held
            sleep(LOOK_SECONDS)
            self.check()
        if before is not None:
            say(f"there is room now, after {duration(time.monotonic() - began)}")

    def most_workers(self) -> int:
        """Give how many workers this run may have now, so that the runs before it keep theirs."""
        total, held = cluster_total(), self._held_before().values()
        if not held:
            return self.resources.num_workers[1]
        (cpus, gpus), each = needs(self.resources, 0), self.resources.each()
        left = {
            "CPU": total["CPU"] - cpus - sum(one[0] for one in held),
            "GPU": total["GPU"] - gpus - sum(one[1] for one in held),
        }
        least, most = self.resources.num_workers
        fitting = min(int((left[name] + ROUNDING) // need) for name, need in each.items())
        return max(least, min(most, fitting))

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Go on saying that the run lives, whatever else this process waits for."""

        def beat() -> None:
            with contextlib.suppress(Exception):  # of a head that is away: it may come back
                self.check()

        with repeated(beat, BEAT_SECONDS, "turn"):
            yield

    def _held_before(self) -> dict[str, tuple[float, float]]:
        """Give the CPUs and GPUs of the runs before this one that live."""
        held = {}
        for number in sorted(_numbers()):
            ticket = _read(number) if number < self.number else None
            if ticket is None or ticket.has_left:
                continue
            if ticket.run == self.ticket.run or self._has_lapsed(number, ticket.beat):
                # An earlier start of this run has ended, or ends as soon as it finds itself
                # replaced: to wait for its place would be to wait for the whole run.
                _give_up(number, ticket)
            else:
                held[ticket.run] = (ticket.cpus, ticket.gpus)
        return held

    def _has_lapsed(self, number: int, beat: int) -> bool:
        """Say whether a ticket has had the same beat for long, as far as this run saw."""
        newest, since = self.seen.get(number, (None, 0.0))
        if beat != newest:
            self.seen[number] = (beat, time.monotonic())
            return False
        return time.monotonic() - since > LAPSE_SECONDS

    def _has_room(self, held: dict[str, tuple[float, float]]) -> bool:
        """Say whether the cluster holds this run beside those; the first never waits here."""
        total = cluster_total()
        sums = [need + sum(each[i] for each in held.values()) for i, need in enumerate(self.least)]
        return not held or (sums[0] <= total["CPU"] and sums[1] <= total["GPU"])

    def _describe(self, held: dict[str, tuple[float, float]]) -> str:
        total = cluster_total()
        those = ", ".join(f"{run} ({amount(*each)})" for run, each in held.items())
        return (
            f"waiting for room: this run takes {amount(*self.least)}, and of the cluster's "
            f"{amount(total['CPU'], total['GPU'])} these were here before: {those}"
        )

    def check(self) -> None:
        """Say that the run lives; may be called often."""
        if time.monotonic() - self.beaten >= BEAT_SECONDS:
            self.beaten = time.monotonic()
            self.ticket.beat += 1
            _write(self.number, self.ticket)

    def leave(self) -> None:
        """Give the place away."""
        _give_up(self.number, self.ticket)
        numbers = _numbers()
        for number in numbers:
            ticket = _read(number)
            if number < max(numbers) and ticket is not None and ticket.has_left:
                internal_kv._internal_kv_del(_key(number), namespace=NAMESPACE)


def amount(cpus: float, gpus: float) -> str:
    """Write what a run takes: 8 GPUs and 65 CPUs."""
    known = [(gpus, "GPU")] * (gpus > 0) + [(cpus, "CPU")]
    return " and ".join(f"{count:g} {what}{'s' * (count != 1)}" for count, what in known)


def _key(number: int) -> str:
    return f"{PREFIX}{number:09d}"


def _numbers() -> list[int]:
    keys = internal_kv._internal_kv_list(PREFIX, namespace=NAMESPACE)
    return [int(key.decode().removeprefix(PREFIX)) for key in keys]


def _read(number: int) -> Ticket | None:
    """Read a ticket; None if it has just been deleted."""
    value = internal_kv._internal_kv_get(_key(number), namespace=NAMESPACE)
    return None if value is None else Ticket(**json.loads(value))


def _write(number: int, ticket: Ticket, *, only_new: bool = False) -> bool:
    """Write a ticket; says whether there was one of this number."""
    value: Any = json.dumps(asdict(ticket))
    was_there: bool = internal_kv._internal_kv_put(
        _key(number), value, overwrite=not only_new, namespace=NAMESPACE
    )
    return was_there


def _give_up(number: int, ticket: Ticket) -> None:
    ticket.has_left = True
    _write(number, ticket)
