"""Why a group of workers failed, and what happens next: retry budgets by cause.

Failures of machines are expected, and a run survives any number of them as long as it gets on. An
error in the code comes back at the same place: trying it twice shows that, and a third time costs
GPU hours for nothing.
"""

import enum
import errno
import sysconfig
import traceback
from collections import Counter
from dataclasses import dataclass, field

from nanoray.config import InputError, RunReplacedError, StorageError
from nanoray.storage import is_outage

BUG_TRIES = 2
ALL_BUGS = "all errors in the code"

LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
COLLECTIVE_WORDS = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset",
    "process group",
)
"""In the texts of errors that a rank raises because another one has gone."""
MEMORY_WORDS = ("out of memory", "low on memory", "can't allocate memory", "alloc_failed")


class Cause(enum.StrEnum):
    """What a failure is taken for; of several ranks' causes the last one here is the group's."""

    LOST = "lost worker"
    PREEMPTION = "preemption"
    DIVERGENCE = "divergence"
    GROWTH = "room for more workers"
    STOP = "asked to stop"
    HANG = "hang"
    STORAGE = "storage"
    MEMORY = "out of memory"
    BUG = "error in the code"
    OUTAGE = "storage outage"
    INPUT = "wrong input"
    REPLACED = "replaced by another start"


WITHOUT_LIMIT = (Cause.PREEMPTION, Cause.DIVERGENCE, Cause.GROWTH)
"""Rollbacks have a limit of their own."""


@dataclass(frozen=True)
class Failure:
    """Why one worker ended."""

    cause: Cause
    rank: int
    summary: str
    """One line: the error, and where in the project it was raised."""
    details: str = ""
    """The traceback; empty for a worker that could not tell."""
    place: str = ""
    """What was raised where: the same for an error that comes back with another text."""


@dataclass(frozen=True)
class Decision:
    """What happens after a failure."""

    again: bool
    line: str
    """For the log: cause, count, limit, what happens next."""
    device_batch_size: int
    """Rows per forward pass of the next start."""


def describe_failure(error: BaseException, rank: int) -> Failure:
    """Classify an exception; called where it was raised, its traceback is told too."""
    error = raised_there(error)
    text = f"{type(error).__name__}: {error}".strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
    where = f", at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""
    details = "".join(traceback.format_exception(error)) if frames else ""
    summary = (text.splitlines() or [""])[0] + where
    place = f"{type(error).__name__}{where}" if own else ""
    return Failure(find_cause(error), rank, summary, details, place)


def raised_there(error: BaseException) -> BaseException:
    """Give what a reader raised in its own process, of what Ray raises here."""
    while type(error).__name__.startswith("RayTaskError"):
        cause = getattr(error, "cause", None)
        if not isinstance(cause, BaseException):
            break
        error = cause
    return error


def find_cause(error: BaseException) -> Cause:
    """Say what an exception of a worker, or of Ray about a worker, means.

    Ray's and torch's classes are known by their names: this runs on machines that have neither.
    """
    error = getattr(error, "health_check_failure", error)  # what Ray Train wraps
    names = {cls.__name__ for cls in type(error).__mro__}
    text = str(error).lower()
    if getattr(error, "preempted", False) or "PreemptionError" in names:
        return Cause.PREEMPTION
    if "DivergedError" in names:
        return Cause.DIVERGENCE
    if "RoomForMoreError" in names:
        return Cause.GROWTH
    if "AskedToStopError" in names:
        return Cause.STOP
    if isinstance(error, RunReplacedError):
        return Cause.REPLACED
    if isinstance(error, StorageError):  # whoever raises it has been patient
        return Cause.OUTAGE
    if isinstance(error, InputError):
        return Cause.INPUT
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if no_memory or "OutOfMemoryError" in names or isinstance(error, MemoryError):
        return Cause.MEMORY
    if is_outage(error) and not isinstance(error, ConnectionError):
        return Cause.STORAGE
    if is_of_a_gpu(names, text):
        return Cause.LOST
    lost = names & {"RayError", "RayTrainError", "DistError", "DistBackendError", "ConnectionError"}
    if (lost or "RuntimeError" in names) and any(word in text for word in MEMORY_WORDS):
        return Cause.MEMORY
    if lost or ("RuntimeError" in names and any(word in text for word in COLLECTIVE_WORDS)):
        return Cause.LOST
    return Cause.BUG


def is_of_a_gpu(names: set[str], text: str) -> bool:
    """Say whether an error is one of a GPU or of its driver, which another node may not have."""
    if "device-side assert" in text or any(word in text for word in MEMORY_WORDS):
        return False
    return "AcceleratorError" in names or ("RuntimeError" in names and "cuda error" in text)


def of_group(failures: list[Failure]) -> Failure:
    """Choose the failure that explains the others: ranks that lost a peer fail after it."""
    order = list(Cause)
    return max(failures, key=lambda failure: (order.index(failure.cause), -failure.rank))


@dataclass
class RetryBudget:
    """Counts failures by cause, and decides whether the group is started again."""

    max_restarts: int
    """In a row, without a checkpoint saved between them."""
    device_batch_size: int
    counts: Counter[str] = field(default_factory=Counter)
    """By cause; errors in the code by what was raised where."""
    last_step: int = -1
    """Where the start before the newest failure began."""

    def decide(self, failure: Failure, resume_step: int) -> Decision:
        """Count a failure; `resume_step` is the newest checkpoint, where another start begins."""
        if resume_step > self.last_step:
            self._forget_machines()
        self.last_step = resume_step
        is_bug = failure.cause is Cause.BUG
        key = (failure.place or failure.summary) if is_bug else failure.cause.value
        self.counts[key] += 1
        self.counts[ALL_BUGS] += is_bug
        count = self.counts[key]
        if failure.cause is Cause.INPUT:
            return self._stop(failure, count, 1, "the input must be put right")
        if failure.cause is Cause.REPLACED:
            return self._stop(failure, count, 1, "the other start has the run now")
        if failure.cause is Cause.STOP:
            return self._stop(failure, count, 1, "it was asked to")
        if failure.cause is Cause.OUTAGE:
            return self._stop(failure, count, 1, "the storage must be mended")
        if failure.cause in WITHOUT_LIMIT:
            return self._again(failure, count, "no limit", resume_step)
        if is_bug and count >= BUG_TRIES:
            return self._stop(failure, count, BUG_TRIES, "it would come back")
        if is_bug and self.counts[ALL_BUGS] > self.max_restarts:
            why = f"{self.counts[ALL_BUGS]} errors came without a checkpoint between them"
            return self._stop(failure, count, BUG_TRIES, why)
        if failure.cause is Cause.MEMORY:
            return self._with_half_the_batch(failure, count, resume_step)
        limit = BUG_TRIES if is_bug else self.max_restarts
        if count > limit:
            return self._stop(failure, count, limit, "no checkpoint was saved between them")
        return self._again(failure, count, str(limit), resume_step)

    def _forget_machines(self) -> None:
        """Forget the failures of machines, because the run has got on since."""
        for key in (Cause.LOST.value, Cause.HANG.value, Cause.STORAGE.value, ALL_BUGS):
            del self.counts[key]

    def _with_half_the_batch(self, failure: Failure, count: int, resume_step: int) -> Decision:
        """Try again with fewer rows per forward pass and more of them: the same global batch."""
        rows, half = self.device_batch_size, self.device_batch_size // 2
        limit = count - 1 + rows.bit_length() - 1  # halvings done, and left
        if not half:
            return self._stop(failure, count, limit, "a single row does not fit")
        self.device_batch_size = half
        how = f"the device batch goes from {rows} to {half} rows, the global batch stays"
        return self._again(failure, count, str(limit), resume_step, how)

    def _again(
        self, failure: Failure, count: int, limit: str, resume_step: int, how: str = ""
    ) -> Decision:
        place = f"step {resume_step}" if resume_step else "the beginning"
        line = _head(failure, count, limit) + f"the group starts again from {place}"
        return Decision(True, f"{line}, {how}" if how else line, self.device_batch_size)

    def _stop(self, failure: Failure, count: int, limit: int, why: str) -> Decision:
        line = _head(failure, count, str(limit)) + f"the run stops, because {why}"
        return Decision(False, line, self.device_batch_size)


def _head(failure: Failure, count: int, limit: str) -> str:
    """Give cause, count and limit."""
    cause = f"{failure.cause.value} on rank {failure.rank} ({failure.summary})"
    return f"{cause}: {count} of {limit}; "
