"""A run that may take so much and no more: it saves and stops when that is spent."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray

from nanoray.data.feed import Actor


@dataclass(frozen=True)
class Allowance:
    """What a start of a run may take."""

    seconds: float
    """With workers."""
    reason: str
    """Told when they are over."""


class Deadline:
    """Asks the workers of a run to stop when its time is over."""

    def __init__(
        self, monitor: Actor, allowance: Allowance, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.monitor, self.reason, self.clock = monitor, allowance.reason, clock
        self.left, self.looked = allowance.seconds, clock()
        self.is_over = False

    def check(self) -> None:
        """Ask once, when it is time; may be called often.

        While the run waits for its turn or for machines, nothing is paid for.
        """
        if self.is_over:
            return
        is_paid, now = ray.get(self.monitor.holds_workers.remote()), self.clock()
        self.left -= (now - self.looked) * is_paid
        self.looked, self.is_over = now, self.left <= 0
        if self.is_over:
            self.monitor.ask_to_stop.remote(self.reason)
