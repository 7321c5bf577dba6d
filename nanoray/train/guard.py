"""Which steps are made and which are skipped: a bad gradient must not reach weights or averages.

The decision is made on every rank from the same all-reduced loss and norm, and from norms that are
part of the checkpoint. So all ranks decide alike, and a replayed run decides as before.
"""

import math
import os
from collections import deque
from typing import Any

from nanoray.data.plan import Cursor

WINDOW = 128
"""Norms that are remembered, as many as in OLMo-core's SkipStepOptimizer."""
LEAST_NORMS = WINDOW // 2
"""Before so many are known, only what is not finite is skipped (OLMo-core)."""
LEAST_DEVIATION = 0.1
"""Of the logarithm: norms of large batches lie so near each other that six deviations would be a
rise by a third, which harms nobody. With it, 1.8 times the usual norm always passes."""

POISON_VARIABLE = "NANORAY_TEST_SCALE_GRADIENT"
"""For tests: FIRST-LAST:FACTOR multiplies the gradient of every step whose rows begin in one of the
units FIRST to LAST. It is tied to data, not to steps, so that going past them helps."""


class StepGuard:
    """Judges each step by its loss and gradient norm, and remembers what it needs for the next.

    A norm is compared with those of the last 128 steps that were made, by its logarithm, because
    norms are positive and skewed to the right: six deviations of the plain values would skip one
    step in some thousand of a small batch that is in order. Mean and deviation suffice where a
    median would be taken against outliers, because none enters. (In OLMo-core all enter: one spike
    widens the deviation for 128 steps, and after one nan every comparison fails. Spikes that enter
    as the largest norm allowed were tried: one in forty makes the limit grow without end.)
    Norms that are far higher for good are skipped for good, and end in a rollback.
    """

    def __init__(self, sigmas: float | None = 6.0) -> None:
        """Begin with no norms; `sigmas` None skips only what is not finite."""
        self.sigmas = sigmas
        self.log_norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped = 0
        """Steps skipped since the run began."""
        self.in_a_row = 0
        """Skipped steps since the last one that was made."""

    def limit(self) -> float:
        """Give the logarithm of the largest norm that passes."""
        n = len(self.log_norms)
        if self.sigmas is None or n < LEAST_NORMS:
            return math.inf
        mean = math.fsum(self.log_norms) / n
        variance = math.fsum((x - mean) ** 2 for x in self.log_norms) / n
        return mean + self.sigmas * max(math.sqrt(variance), LEAST_DEVIATION)

    def judge(self, loss: float, grad_norm: float) -> str | None:
        """Decide on a step, and remember it.

        Args:
            loss: mean over the global batch.
            grad_norm: of the mean gradient of all ranks, before clipping.

        Returns:
            Why the step must be skipped; None for a step to be made.
        """
        problem = None
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif not math.isfinite(grad_norm):
            problem = f"the gradient norm is {grad_norm}"
        elif grad_norm > 0:
            limit, log_norm = self.limit(), math.log(grad_norm)
            if log_norm > limit:
                most = math.exp(limit)
                problem = f"the gradient norm is {grad_norm:.4g} and at most {most:.4g} is usual"
            else:
                self.log_norms.append(log_norm)
        self.skipped += problem is not None
        self.in_a_row = 0 if problem is None else self.in_a_row + 1
        return problem

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give what the next decisions depend on."""
        return {
            "log_norms": list(self.log_norms),
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
        }

    def load(self, saved: dict[str, Any]) -> None:  # Any: JSON
        """Go on from what `to_json` gave; from nothing, as for a run that has made no step."""
        self.log_norms = deque(saved.get("log_norms", []), maxlen=WINDOW)
        self.skipped, self.in_a_row = saved.get("skipped", 0), saved.get("in_a_row", 0)


def poison(cursor: Cursor) -> float:
    """Give the factor on the gradient of a step that begins at a cursor: 1 but in tests."""
    asked = os.environ.get(POISON_VARIABLE)
    if not asked:
        return 1.0
    units, factor = asked.split(":")
    first, last = units.split("-")
    return float(factor) if int(first) <= cursor.position <= int(last) else 1.0
