"""One run that is harmed on the way, and what can be measured from outside."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from nanoray.config import RunFailedError
from nanoray.goodput import CATEGORIES, read_account
from nanoray.metrics import read_lines, read_metrics
from nanoray.ops.chaos_faults import FAULTS, HARM_CHECKPOINTS, Harm, Target
from nanoray.ops.chaos_job import WatchedJob
from nanoray.storage import StageFolder, read_json
from nanoray.train.checkpoint_files import committed_steps, step_name

logger = logging.getLogger(__name__)

STORAGE_SIGNS = ("could not be saved", "cannot be written", "cannot be reached")
"""In the lines of a job whose storage fails."""
PATIENCE_SECONDS = 600.0
"""Without a step, of a run that nothing keeps from training; then it counts as not recovered."""
LOSS_TOLERANCE = 0.1
"""Between the losses of a step where sums are made in another order: by another number of workers,
or on GPUs. That alone moves them by far less (tests/faults/test_elastic.py: 1e-4), but a difference
in the last bit grows with every step that follows."""


@dataclass(frozen=True)
class Plan:
    """What happens in a trial."""

    run: str
    seed: int
    faults: tuple[tuple[int, str], ...]
    """Steps, ascending, and what happens when each has been made."""


@dataclass(frozen=True)
class Injury:
    """One fault, and what became of it; times in seconds since it was done."""

    fault: str
    what: str
    step: int
    """The newest one then."""
    detected_after: float | None
    """Until the run said so; None if it did not have to."""
    training_after: float | None
    """Until the next step was made; 0 where training went on, None if it never came."""
    saved_after: float | None
    """Until the next checkpoint was committed."""
    lost_steps: int
    """Steps that had been made and were made again."""


@dataclass
class Trial:
    """A run that was harmed, compared with the one that was not."""

    plan: Plan
    injuries: list[Injury] = field(default_factory=list)
    ended: str = ""
    """Why it did not come to its end; empty if it did."""
    same_losses: bool = False
    largest_difference: float = float("nan")
    """Between the losses of a step in both runs."""
    same_ledger: bool = False
    same_weights: bool = False
    goodput: float = 0.0
    """Productive part of the time from the first start to the last step."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That time by category."""
    must_be_exact: bool = True
    """The number of workers is fixed, and they compute on CPUs: every bit is decided."""

    @property
    def is_equal(self) -> bool:
        """The run equals the undisturbed one to the last bit."""
        return not self.ended and self.same_losses and self.same_ledger and self.same_weights

    @property
    def problem(self) -> str:
        """Say what the run lacks to have recovered; empty if nothing."""
        if self.ended:
            return self.ended
        near = self.largest_difference <= LOSS_TOLERANCE  # not so for nan
        checks = [
            (self.same_ledger, "it learned from other data"),
            (
                self.same_losses if self.must_be_exact else near,
                f"its losses differ by up to {self.largest_difference:.2g}",
            ),
            (self.same_weights or not self.must_be_exact, "its weights differ"),
        ]
        return ", ".join(text for is_so, text in checks if not is_so)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all of it as plain values."""
        return {**asdict(self), "is_equal": self.is_equal}


def run_trial(
    plan: Plan, target: Target, calm: StageFolder, *, must_be_exact: bool = True
) -> Trial:
    """Run a job, harm it as planned, wait for its end, and compare it with the calm run.

    The job has ended when this returns or raises, and what was done is made good.
    """
    trial = Trial(plan, must_be_exact=must_be_exact)
    job = target.job
    job.start("--fresh")
    try:
        for step, fault in plan.faults:
            wait_until(job, partial(is_due, target, step, fault))
            if job.code is not None:
                logger.warning("%s ended before %s at step %d", plan.run, fault, step)
                break
            injury = harm(target, fault)
            trial.injuries.append(injury)
            logger.info("%s: %s", plan.run, told(injury))
        wait_until(job, lambda: job.code is not None)
    except TimeoutError:
        trial.ended = f"nothing happened for {PATIENCE_SECONDS:.0f} s"
    finally:  # it is in a session of its own, which Ctrl-C does not reach
        job.kill()
    if job.code and not trial.ended:
        trial.ended = f"exit code {job.code}"
    if trial.ended:
        logger.warning("%s did not end well: %s\n%s", plan.run, trial.ended, job.last_lines())
    else:
        compare(trial, target.folder, calm)
    return trial


def is_due(target: Target, step: int, fault: str) -> bool:
    """Say whether a run has made a step, all its workers train, and there is what is harmed."""
    if target.job.newest_step() < step:
        return False
    if fault in HARM_CHECKPOINTS and not committed_steps(target.folder):
        return False
    return target.is_training()


class Patience:
    """Runs out when a job has made no step for a long time."""

    def __init__(self, job: WatchedJob) -> None:
        self.job, self.newest, self.since = job, -1, time.monotonic()

    def renew(self) -> None:
        """Begin anew: until now something kept the job from training."""
        self.since = time.monotonic()

    def check(self) -> None:
        """Look whether the job gets on.

        Raises:
            TimeoutError: it does not.
        """
        step = self.job.newest_step()
        if step != self.newest:
            self.newest = step
            self.renew()
        if time.monotonic() - self.since > PATIENCE_SECONDS:
            raise TimeoutError


def wait_until(job: WatchedJob, is_so: Callable[[], bool]) -> None:
    """Wait until something is so, or the job has ended; for a long time, if the run gets on.

    Raises:
        TimeoutError: the job runs, and makes no step.
    """
    patience = Patience(job)
    while not is_so() and job.code is None:
        patience.check()
        time.sleep(job.poll_seconds)


def harm(target: Target, fault: str) -> Injury:
    """Do one fault, make it good in its time, and wait until the run has recovered.

    Raises:
        TimeoutError: it was made good, and the run makes no step.
    """
    job = target.job
    # Before the harm: of a storage that is away, no checkpoint is seen.
    before, saved = job.newest_step(), newest_committed(target.folder)
    watch = Watch(target, FAULTS[fault](target), before, saved)
    patience = Patience(job)
    try:
        while not watch.has_recovered():
            if watch.will_mend:
                patience.renew()
            elif job.code is not None:
                break
            patience.check()
            time.sleep(job.poll_seconds)
    finally:
        watch.mend()
    return watch.injury(fault)


class Watch:
    """Looks at a run after a fault, until it trains and has saved again."""

    def __init__(self, target: Target, done: Harm, before: int, saved: int) -> None:
        """Begin to look.

        Args:
            target: what was harmed.
            done: how.
            before: the newest step until then.
            saved: the newest checkpoint until then.
        """
        self.target, self.job, self.done, self.began = target, target.job, done, done.at
        self.newest = before
        self.before = before
        self.will_mend = True
        self.detected: float | None = None
        self.training: float | None = None if done.stops_training else done.at
        self.saved: float | None = None
        self.lost = 0
        self.committed = saved

    def has_recovered(self) -> bool:
        """Look once; says whether the fault is over."""
        if time.time() - self.began >= self.done.mend_after:
            self.mend()
        if self.done.stops_training:
            self._look_at_groups()
        elif self.detected is None:
            self.detected = self.job.first_line_after(self.began, *STORAGE_SIGNS)
        can_save = self.training is not None and not self.will_mend
        if can_save and newest_committed(self.target.folder) > self.committed:
            self.saved = time.time()
        return self.saved is not None

    def mend(self) -> None:
        """Make good what was done, unless that has been done."""
        if self.will_mend:
            self.will_mend = False
            self.done.mend()

    def _look_at_groups(self) -> None:
        """Find the first sign of the failure, and the first step after it."""
        events = [event for event in self.job.events() if event["time"] > self.began]
        failures = [e["time"] for e in events if e["event"] in ("failure", "start")]
        if failures and self.detected is None:
            self.detected = failures[0]
        begins = [event for event in events if event["event"] == "begin"]
        steps = self.job.steps()
        if not begins:
            self.newest = max([self.newest, *(step["step"] for step in steps[-1:])])
            return
        resumed = int(begins[-1]["step"])
        again = [step["time"] for step in steps if step["time"] > begins[-1]["time"]]
        if again and self.training is None:
            self.training = again[0]
            self.lost = max(0, self.newest - resumed)
            self.committed = resumed

    def injury(self, fault: str) -> Injury:
        """Give what was seen."""

        def after(moment: float | None) -> float | None:
            return None if moment is None else round(moment - self.began, 2)

        return Injury(
            fault=fault,
            what=self.done.what,
            step=self.before,
            detected_after=after(self.detected),
            training_after=after(self.training),
            saved_after=after(self.saved),
            lost_steps=self.lost,
        )


def newest_committed(folder: StageFolder) -> int:
    """Give the newest checkpoint; 0 before there is one, or while the storage is away."""
    return ([0, *committed_steps(folder)])[-1]


def told(injury: Injury) -> str:
    """Give one line about a fault."""

    def seconds(value: float | None) -> str:
        return "never" if value is None else f"after {value:.1f} s"

    return (
        f"step {injury.step}, {injury.what}: detected {seconds(injury.detected_after)}, training "
        f"again {seconds(injury.training_after)}, {injury.lost_steps} steps lost"
    )


def compare(trial: Trial, folder: StageFolder, calm: StageFolder) -> None:
    """Compare losses, ledger and weights of two finished runs, and account for the time."""
    ours, theirs = (losses_of(each) for each in (folder, calm))
    trial.same_losses = ours == theirs
    if ours.keys() == theirs.keys():
        # Equal ones are no difference, also where both are infinite.
        apart = (abs(ours[step] - loss) for step, loss in theirs.items() if ours[step] != loss)
        trial.largest_difference = max(apart, default=0.0)
    trial.same_ledger = ledger_of(folder) == ledger_of(calm)
    trial.same_weights = weights_of(folder) == weights_of(calm)
    account = read_account(folder)
    last = read_metrics(folder.fs, folder.path("metrics.jsonl"))[-1]
    trial.seconds = {name: round(last[f"goodput/{name}_seconds"], 3) for name in CATEGORIES}
    trial.goodput = trial.seconds["productive"] / (float(last["time"]) - account.origin)


def losses_of(folder: StageFolder) -> dict[int, float]:
    """Give the loss of each step; one that was not finite is taken for infinite."""
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    return {r["step"]: float("inf") if (v := r["train/loss"]) is None else v for r in records}


def ledger_of(folder: StageFolder) -> list[str]:
    """Give the lines that say which data each step learned from."""
    return read_lines(folder.fs, folder.path("ledger.jsonl"))


def weights_of(folder: StageFolder) -> str:
    """Give the checksum of the newest weights."""
    steps = committed_steps(folder)
    if not steps:
        raise RunFailedError(f"{folder} has no checkpoint.")
    path = folder.path("checkpoints", step_name(steps[-1]), "manifest.json")
    manifest = read_json(folder.fs, path) or {}
    return str(manifest["files"]["model.safetensors"]["sha256"])
