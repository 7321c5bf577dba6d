"""Trials on Ray Tune: each is a driver that pretrains as jobs/pretrain.py does.

Tune starts the drivers and starts one again whose node is lost. What a trial died of itself is
decided in here, because another start would only come to the same end; and what is done already is
known from the folders of the trials, so that Tune's own state is never read again.
"""

import logging
import os
import time
import traceback
from dataclasses import dataclass
from typing import Any

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import tune

from nanoray.cluster.placement import Labels, for_lasting
from nanoray.cluster.reservations import Reservations
from nanoray.config import InputError, RunFailedError, RunReplacedError, RunStoppedError
from nanoray.data.feed import Actor
from nanoray.ops.trial_branch import take_over
from nanoray.ops.trial_rows import (
    folder_of,
    forget_outcome,
    is_done,
    read_outcome,
    write_outcome,
)
from nanoray.ops.trial_table import Status
from nanoray.ops.trials import Trial
from nanoray.stages.pretrain import pretrain
from nanoray.storage import RunFolder, is_local
from nanoray.storage_errors import first_line
from nanoray.train.rollback import RollbackLimitError

logger = logging.getLogger(__name__)

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a trial has its own logs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once: nothing is lost
    "RAY_AIR_NEW_OUTPUT": "0",  # the newer one prints a box whatever it is told
}
DRIVER = {"memory": 1.0}
"""What Tune books for a driver: it takes no CPU from the workers, and nothing at all is no
request."""


@dataclass(frozen=True)
class Pool:
    """How trials share the cluster."""

    admission: Actor
    at_once: int
    """Drivers that exist at a time; they train as the admission lets them."""
    max_restarts: int
    """Of a driver whose node was lost."""


class Over(tune.Stopper):
    """Ends a sweep without starting the driver of every trial that could not train any more."""

    def __init__(self, admission: Actor) -> None:
        self.admission = admission

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # Any: Tune's
        """Let each trial come to its own end."""
        return False

    def stop_all(self) -> bool:
        """Say whether the sweep is over."""
        return bool(ray.get(self.admission.why_over.remote()))


def run_trials(trials: list[Trial], folder: RunFolder, pool: Pool) -> None:
    """Run trials until each is done, or has failed for good.

    Raises:
        KeyboardInterrupt: Ctrl-C; each trial goes on from its newest checkpoint when the sweep is
            started again.
    """
    left = [trial for trial in trials if not is_done(trial)]
    if not left or stop_waiting(left, pool.admission):
        return
    for trial in left:
        forget_outcome(trial)
        Reservations(folder_of(trial).run).release_old()
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    by_name = {trial.name: trial for trial in left}
    largest_first = sorted(left, key=lambda t: (-int(t.config.num_workers or 1), -t.own_flops))

    def drive(asked: dict[str, Any]) -> None:  # Any: Tune's
        tune.report(drive_trial(by_name[asked["trial"]], pool.admission))

    tuner = tune.Tuner(
        tune.with_resources(drive, booking(for_lasting())),
        param_space={"trial": tune.grid_search([trial.name for trial in largest_first])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=pool.at_once,
            trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=tune.RunConfig(
            name=f"{int(time.time())}-{os.getpid()}",
            storage_path=folder.path(".ray"),
            storage_filesystem=None
            if is_local(folder.fs)
            else PyFileSystem(FSSpecHandler(folder.fs)),
            failure_config=tune.FailureConfig(max_failures=pool.max_restarts),
            stop=Over(pool.admission),
            verbose=0,
        ),
    )
    results = tuner.fit()
    for i, trial in enumerate(largest_first):
        result = results[i]
        if result.error is not None and not is_done(trial):
            ray.get(pool.admission.leave.remote(trial.name))
            write_outcome(trial, Status.FAILED, f"its driver was lost: {last_line(result.error)}")
    stop_waiting(left, pool.admission)


def booking(labels: Labels) -> tune.PlacementGroupFactory:
    """Say what Tune books for a driver, on a node with these labels; on any if there are none."""
    # By nothing but its memory a driver fits a spot node as well, and would be lost with it.
    selector = [labels] if labels else None
    return tune.PlacementGroupFactory([DRIVER], bundle_label_selector=selector)


def stop_waiting(trials: list[Trial], admission: Actor) -> bool:
    """Say whether nobody will train any more, and note why of all trials that wait."""
    why: str = ray.get(admission.why_over.remote())
    for trial in trials:
        if why and read_outcome(trial)[0] is Status.WAITING:
            write_outcome(trial, Status.STOPPED, why)
    return bool(why)


def drive_trial(trial: Trial, admission: Actor) -> dict[str, str]:
    """Train one trial when there is room for it; gives how it ended.

    Raises:
        RayError: a part of the cluster was lost; Tune starts the trial again.
    """
    why = ray.get(admission.enter.remote(trial.name, int(trial.config.num_workers or 1)))
    if why:
        return ended(trial, Status.STOPPED, why)
    try:
        take_over(trial)
        pretrain(trial.config)
        return {"status": Status.DONE.value}
    except RunStoppedError as error:
        return ended(trial, Status.STOPPED, str(error))
    except RollbackLimitError as error:
        return ended(trial, Status.DIVERGED, str(error))
    except RunReplacedError as error:  # how the trial ends is for the other driver to say
        return {"status": Status.FAILED.value, "reason": str(error)}
    except (InputError, RunFailedError) as error:
        return ended(trial, Status.FAILED, first_line(error))
    except ray.exceptions.RayError:
        raise
    except Exception as error:
        logger.exception("%s failed", trial.name)
        return ended(trial, Status.FAILED, last_line(error))
    finally:
        ray.get(admission.leave.remote(trial.name))


def ended(trial: Trial, status: Status, reason: str) -> dict[str, str]:
    """Keep how a trial ended, for the table and for whoever asks later."""
    write_outcome(trial, status, reason)
    return {"status": status.value, "reason": reason}


def last_line(error: BaseException) -> str:
    """Give the end of a traceback: what was raised."""
    return traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
