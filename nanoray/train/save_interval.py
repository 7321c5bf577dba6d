"""How often a run is saved: as often as failures make it worth its stall.

Young 1974, Daly 2006: with a stall of s seconds for each checkpoint and a failure every M seconds,
least time is lost to both when sqrt(2 s M) seconds of training lie between two checkpoints.
"""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from nanoray.events import FailureHistory

logger = logging.getLogger(__name__)

PRIOR_SECONDS_PER_JOB = 8 * 3600.0
"""A failure every 8 hours, for what befalls a run of any size: spot machines that are taken away,
storage, a person. It counts as one failure seen; what a run lives through soon outweighs it."""
PRIOR_SECONDS_PER_GPU = 54 * 86400 * 16_384 / 419
"""Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100, one in 50,700 GPU hours."""
LEAST_SECONDS, MOST_SECONDS = 60.0, 3600.0
STALLS = 5
"""The stall is the median of so many: the first one includes making the host's buffers."""
MUCH = 1.5
"""An interval that has changed by this factor is logged."""


@dataclass(frozen=True)
class SaveConfig:
    """When to save; with neither interval, as failures and stall ask for."""

    every_steps: int | None = None
    every_seconds: float | None = None
    multiples_of: int | None = None
    """Steps that are saved besides: somebody waits for just them."""
    at_steps: tuple[int, ...] = ()
    """More such steps."""
    history: FailureHistory = field(default_factory=FailureHistory)
    """Of the run before this start."""


def seconds_between_failures(history: FailureHistory, world_size: int) -> float:
    """Estimate the mean from what was seen, and a prior that weighs as much as one failure."""
    prior = 1 / (1 / PRIOR_SECONDS_PER_JOB + world_size / PRIOR_SECONDS_PER_GPU)
    return (prior + history.seconds) / (1 + history.failures)


def young_daly_seconds(stall_seconds: float, between_failures_seconds: float) -> float:
    """Give the best interval, but no less than a minute and no more than an hour."""
    best = math.sqrt(2 * stall_seconds * between_failures_seconds)
    return min(max(best, LEAST_SECONDS), MOST_SECONDS)


class SaveInterval:
    """Says on rank 0 when to save; the other ranks hear it with the sums of the step."""

    def __init__(
        self,
        config: SaveConfig,
        world_size: int,
        step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at a step that is saved already."""
        self.config, self.world_size, self.clock = config, world_size, clock
        self.began = self.saved_at = clock()
        self.saved_step = step
        self.stalls: deque[float] = deque(maxlen=STALLS)
        self.seconds = config.every_seconds
        self.logged: float | None = None
        if config.every_steps is None and config.every_seconds is None:
            self.seconds = LEAST_SECONDS  # the first save measures the stall

    def is_due(self, step: int) -> bool:
        """Say whether to save after a step, which is about to be made."""
        every = self.config.every_steps
        if self.is_promised(step):
            return True
        if every is not None and step // every > self.saved_step // every:
            return True
        return self.seconds is not None and self.clock() - self.saved_at >= self.seconds

    def is_promised(self, step: int) -> bool:
        """Say whether somebody needs this very step."""
        multiples_of = self.config.multiples_of
        is_multiple = multiples_of is not None and step % multiples_of == 0
        return is_multiple or step in self.config.at_steps

    def saved(self, step: int, stall_seconds: float) -> None:
        """Note that a step was saved, and how long training stood still for it."""
        self.saved_step, self.saved_at = step, self.clock()
        self.stalls.append(stall_seconds)
        if self.config.every_steps is None and self.config.every_seconds is None:
            self._choose()

    def _choose(self) -> None:
        """Choose the interval anew."""
        before = self.config.history
        lived = FailureHistory(before.failures, before.seconds + self.clock() - self.began)
        stall, between = (
            statistics.median(self.stalls),
            seconds_between_failures(lived, self.world_size),
        )
        self.seconds = young_daly_seconds(stall, between)
        if (
            self.logged is None
            or max(self.seconds / self.logged, self.logged / self.seconds) > MUCH
        ):
            self.logged = self.seconds
            logger.info(
                "saving every %.0f s: a save stalls training for %.3f s, and a failure is expected "
                "every %.1f h (seen: %d in %.1f h)",
                *(self.seconds, stall, between / 3600, lived.failures, lived.seconds / 3600),
            )
