"""A run that may cost so much and no more: it saves and stops when that is spent."""

from dataclasses import dataclass

import ray

from nanoray.data.feed import Actor


@dataclass(frozen=True)
class Allowance:
    """What a start of a run may spend."""

    dollars: float
    reason: str
    """Told when they are spent."""


class Deadline:
    """Asks the workers of a run to stop when its money is spent."""

    def __init__(self, monitor: Actor, allowance: Allowance) -> None:
        self.monitor, self.allowance = monitor, allowance
        self.is_over = False

    def check(self) -> None:
        """Ask once, when it is time; may be called often."""
        if self.is_over:
            return
        self.is_over = ray.get(self.monitor.dollars.remote()) >= self.allowance.dollars
        if self.is_over:
            self.monitor.ask_to_stop.remote(self.allowance.reason)
