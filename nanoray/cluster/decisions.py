"""Decisions about a group that has ended, before there is room for another one.

The machine that replaces a lost one may be an hour away. What happened, and what happens next, is
told at once, and a run that is to stop does not wait for workers that it does not need.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from nanoray.cluster.gauges import FailureGauge
from nanoray.cluster.monitor import forward_logs
from nanoray.cluster.recovery import Cause, Decision, Failure, RetryBudget, of_group
from nanoray.config import InputError, RunFailedError, RunStoppedError
from nanoray.data.feed import Actor

logger = logging.getLogger(__name__)


class Decisions(WorkerGroupCallback):
    """Decides in Ray Train's controller whether there is to be another group.

    It stands before Ray asks for a group's resources, which it does again every so often while
    there are none.
    """

    def __init__(
        self,
        monitor: Actor,
        budget: RetryBudget,
        newest_step: Callable[[], int],
        record: Callable[[int, Failure, Decision], None],
        counted: FailureGauge,
    ) -> None:
        """Take what `Group` says of these."""
        self.monitor, self.budget, self.counted = monitor, budget, counted
        self.newest_step, self.record = newest_step, record

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # Any: Ray's, unused
        """Decide about the group that was there, if that has not been done."""
        forward_logs(self.monitor)
        with final_errors(self.monitor):
            start, failures = ray.get(self.monitor.end_group.remote())
            if not failures:
                return
            why = ray.get(self.monitor.reason_to_stop.remote())
            if why:
                saved = f"Step {self.newest_step()} is saved"
                raise RunStoppedError(f"{why}. {saved}; the same command goes on from it.")
            self._decide(start.attempt, of_group(failures))

    def _decide(self, attempt: int, failure: Failure) -> None:
        decision = self.budget.decide(failure, self.newest_step())
        logger.warning("%s", decision.line)
        self.counted.count(failure.cause.value)
        if failure.cause is not Cause.REPLACED:
            self.record(attempt, failure, decision)
        if not decision.again:
            raise ray.get(self.monitor.finished.remote()) or RunFailedError(
                f"{decision.line}.\n{failure.details}"
            )
        ray.get(self.monitor.take_rows.remote(decision.device_batch_size))


@contextlib.contextmanager
def final_errors(monitor: Actor) -> Iterator[None]:
    """Let an error in Ray Train's controller end the run, whatever Ray's own budgets say."""
    try:
        yield
    except (InputError, RunFailedError) as error:
        ray.get(monitor.finish.remote(None, error))
        raise
