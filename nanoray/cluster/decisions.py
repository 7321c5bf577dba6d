"""Decisions about a group that has ended, before there is room for another one.

The machine that replaces a lost one may be an hour away. What happened, and what happens next, is
told at once, and a run that is to stop does not wait for workers that it does not need.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import default as ray_retries

from nanoray.cluster.gauges import FailureGauge
from nanoray.cluster.monitor import forward_logs
from nanoray.cluster.recovery import (
    Cause,
    Decision,
    Failure,
    RetryBudget,
    describe_failure,
    of_group,
)
from nanoray.config import InputError, RunFailedError, RunStoppedError
from nanoray.data.feed import Actor

logger = logging.getLogger(__name__)

NEWS_SECONDS = 5.0
"""For which an elastic group's ranks may still tell why they ended."""
TURN_SECONDS = 0.5
"""Ray Train asks for an elastic group's room again and again, without a pause of its own."""
DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray Train raises of a worker that dies as it is handed its work."""


class Decisions(WorkerGroupCallback, ControllerCallback):
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
        self.ended: float | None = None
        """When an elastic group without enough room was first heard of as ended."""
        self.launched: Any = None  # Any: Ray's worker group

    def before_worker_group_start(self, worker_group_context: Any) -> None:  # Any: Ray's, unused
        """Decide about the group that was there, if that has not been done."""
        retry_deaths()
        self.ended = None
        launched, self.launched = self.launched, None
        if launched is not None and launched.has_started():  # it died as it was launched
            launched._worker_group_state.shutdown()
        self.decide()

    @contextlib.contextmanager
    def on_worker_group_start(self) -> Iterator[None]:
        """Note why a group could not be started: Ray tries again after this, and tells nobody."""
        try:
            yield
        except WorkerGroupStartupFailedError as error:
            why = describe_failure(error.__cause__ or error, 0)
            cause = why.cause if why.cause is Cause.MEMORY else Cause.LOST
            failure = Failure(cause, 0, f"the workers could not be started: {why.summary}")
            ray.get(self.monitor.fail.remote(None, failure, first_hand=False))
            raise

    def after_worker_group_start(self, worker_group: Any) -> None:  # Any: Ray's
        """Keep hold of a group that Ray forgets if it dies before it has its work."""
        self.launched = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Decide about an elastic group although there is not enough room for its least."""
        is_waiting = isinstance(current_state, RestartingState | ReschedulingState)
        if not is_waiting or previous_state is not current_state:
            return
        self.ended = self.ended or time.monotonic()
        if time.monotonic() - self.ended > NEWS_SECONDS:
            self.decide()
        time.sleep(TURN_SECONDS)

    def decide(self) -> None:
        """Decide about the group that was there, once, and about a wish to stop.

        Raises:
            RunFailedError: there is to be no other group; or the job's own actors have gone.
            InputError: what a worker raised as such.
        """
        try:
            forward_logs(self.monitor)
            with final_errors(self.monitor):
                attempt, failures = ray.get(self.monitor.end_group.remote())
                failure = of_group(failures) if failures else None
                why = ray.get(self.monitor.reason_to_stop.remote())
                if why and (failure is None or failure.cause is not Cause.REPLACED):
                    raise RunStoppedError(f"{why}. {self._what_is_saved()}")
                if failure is not None:
                    self._decide(attempt, failure)
        except RayActorError as error:  # they are on the driver's node
            raise RunFailedError(
                f"what the driver watches its run with has ended ({error}); the same command goes "
                "on from the newest checkpoint."
            ) from error

    def _what_is_saved(self) -> str:
        step = self.newest_step()
        if not step:
            return "No step is saved yet; the same command begins anew."
        return f"Step {step} is saved; the same command goes on from it."

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


def retry_deaths() -> None:
    """Let Ray Train start a group again whose worker died as it was handed its work.

    It counts such a death among the errors of its own, which end a run.
    """
    policy: Any = ray_retries  # Any: to Ray's stubs it has these two classes and no others
    known = policy.RETRYABLE_CONTROLLER_ERRORS
    policy.RETRYABLE_CONTROLLER_ERRORS = tuple(dict.fromkeys((*known, *DEATHS)))


@contextlib.contextmanager
def final_errors(monitor: Actor) -> Iterator[None]:
    """Let an error in Ray Train's controller end the run, whatever Ray's own budgets say."""
    try:
        yield
    except (InputError, RunFailedError) as error:
        ray.get(monitor.finish.remote(None, error))
        raise
