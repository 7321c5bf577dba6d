"""A run that may take so much and no more: it saves and stops when that is spent."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from nanoray.data.feed import Actor


@dataclass(frozen=True)
class Allowance:
    """What a start of a run may take."""

    seconds: float
    reason: str
    """Told when they are over."""
    since: float
    """From when on they pass, as a time of `time.monotonic`."""


class Deadline:
    """Asks the workers of a run to stop when its time is over."""

    def __init__(
        self, monitor: Actor, allowance: Allowance, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.monitor, self.reason, self.clock = monitor, allowance.reason, clock
        self.end = allowance.since + allowance.seconds
        self.is_over = False

    def check(self) -> None:
        """Ask once, when it is time; may be called often."""
        if not self.is_over and self.clock() >= self.end:
            self.is_over = True
            self.monitor.ask_to_stop.remote(self.reason)
