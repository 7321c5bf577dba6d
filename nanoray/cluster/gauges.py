"""What a run tells Prometheus, through the metrics that Ray exports on every node.

Ray puts `ray_` before each name: `ray_nanoray_train_loss{run="d34", stage="pretrain"}`.
"""

import math
from typing import Any

from ray.util.metrics import Gauge

from nanoray.goodput import CATEGORIES, DOLLARS, key

TAGS = ("run", "stage")
GAUGES = {
    "step": "steps that are done",
    "tokens": "tokens that were trained on",
    "train/loss": "loss of the newest step, in nats per token",
    "train/grad_norm": "norm of the gradient before clipping",
    "train/lr_multiplier": "learning rate, as a part of the highest",
    "train/tokens_per_second": "speed over all workers",
    "train/mfu": "model FLOPs utilization",
    "train/skipped": "steps that were skipped so far",
    "train/step_seconds": "time of the newest step",
    "train/data_wait_seconds": "part of it spent waiting for data",
    DOLLARS: "what the stage has cost so far, in dollars; on CPUs if that is asked for",
    "checkpoint/stall_seconds": "time for which the newest save stopped training",
    "validation/bits_per_byte": "newest validation",
    "rl/reward": "mean reward of the newest step",
    "validation/pass_at_1": "newest share of held-out questions that were answered",
}
"""Values of metrics.jsonl that are exported."""
SPENT = "nanoray_spent_seconds"
FAILURES = "nanoray_failures"


def exported(name: str) -> str:
    """Give the name under which a value is exported, before Ray's prefix."""
    return f"nanoray_{name.replace('/', '_')}"


class RunGauges:
    """The newest values of a stage of a run; set by its driver."""

    def __init__(self, run: str, stage: str) -> None:
        self.tags = {"run": run, "stage": stage}
        self.gauges = {name: Gauge(exported(name), text, TAGS) for name, text in GAUGES.items()}
        text = "time since the first start, by what it was spent on"
        self.spent = Gauge(SPENT, text, (*TAGS, "category"))

    def show(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Take what a step did."""
        for name, gauge in self.gauges.items():
            value = values.get(name)
            if value is not None and math.isfinite(value):
                gauge.set(value, self.tags)
        for category in CATEGORIES:
            if key(category) in values:
                self.spent.set(values[key(category)], {**self.tags, "category": category})


class FailureGauge:
    """How often the groups of a stage ended in this start of it, by cause.

    Not one of Ray's counters: it sends what those have risen by, and where the answer is late it
    sends that again, which counts twice.
    """

    def __init__(self, run: str, stage: str) -> None:
        self.tags = {"run": run, "stage": stage}
        self.gauge = Gauge(FAILURES, "ends of groups of workers", (*TAGS, "cause"))
        self.counts: dict[str, int] = {}

    def count(self, cause: str) -> None:
        """Count one."""
        self.counts[cause] = self.counts.get(cause, 0) + 1
        self.gauge.set(self.counts[cause], {**self.tags, "cause": cause})
