"""What a run says about itself: one JSON object per step, and Weights & Biases if asked.

metrics.jsonl and ledger.jsonl belong to the run as its weights do: when a run resumes, they are cut
back to the restored step and go on from there, so that each step stands in them exactly once.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fsspec import AbstractFileSystem

from nanoray.storage import StageFolder, is_local, is_outage, read_json, write_file

logger = logging.getLogger(__name__)

Records = Sequence[dict[str, Any]]  # Any: JSON

BEFORE_FILE = "before.json"
"""What was measured before the first step, in stages that begin with that."""
PASS_RATE, PASS_RATE_ERROR = "validation/pass_at_1", "validation/pass_at_1_error"
"""What RL measures of its policy, and the standard error of that."""
Z_95 = 1.959963984540054
"""Standard normal quantile of 97.5 %: of all intervals that are told, 95 % hold the true value."""
UPLOAD_SECONDS = 30.0
"""How often a log on an object store, where nothing can be appended, is written anew."""


class StepLog:
    """A file of JSON lines, one object per step, in the order of the steps.

    Lines that cannot be written, because a disk is full or a storage away, are kept and written
    with a later one. Only `flush` insists, and with it the commit of a checkpoint.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        *,
        last_step: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the log and drop every line after `last_step`, and any line that is not whole.

        `check` raises an error where the log belongs to somebody else by now; it is asked before
        the file is written anew, which would take from the other what he has written.
        """
        self.fs, self.path, self.check = fs, path, check
        check()
        self.lines = [
            line for line in read_lines(fs, path) if json.loads(line)["step"] <= last_step
        ]
        text = "".join(line + "\n" for line in self.lines).encode()
        write_file(fs, path, text)
        self.uploaded = time.monotonic()
        # Unbuffered: a write that fails has written nothing, and one that does not says how much.
        self.file = open(path, "ab", buffering=0) if is_local(fs) else None  # noqa: SIM115 (stays)
        self.good_bytes = self.file_bytes = len(text)
        """Of the file; what stands behind the good ones is out of date."""
        self.unwritten = b""
        self.is_failing = False
        self.lock = threading.Lock()
        """A checkpoint is committed, and flushes, beside the loop that appends."""

    def last(self) -> dict[str, Any]:  # Any: JSON
        """Give the newest object; empty where there is none."""
        return json.loads(self.lines[-1]) if self.lines else {}

    def append(self, record: dict[str, Any]) -> None:  # Any: JSON
        """Add an object; it must have a `step` greater than the last one's."""
        with self.lock:
            self.lines.append(json.dumps(record))
            self.unwritten += self.lines[-1].encode() + b"\n"
            self._write_if_possible()

    def amend(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Add values to the newest object."""
        with self.lock:
            old = len(self.lines[-1].encode()) + 1
            self.lines[-1] = json.dumps({**json.loads(self.lines[-1]), **values})
            in_file = max(0, old - len(self.unwritten))
            self.unwritten = self.unwritten[: len(self.unwritten) - (old - in_file)]
            self.good_bytes -= in_file
            self.unwritten += self.lines[-1].encode() + b"\n"
            self._write_if_possible()

    def flush(self) -> None:
        """Make all lines durable. A checkpoint is committed only after this."""
        with self.lock:
            self._write()
        if self.file is not None:
            os.fsync(self.file.fileno())

    def _write_if_possible(self) -> None:
        """Write what is due; what cannot be written is kept."""
        try:
            if self.file is not None or time.monotonic() - self.uploaded > UPLOAD_SECONDS:
                self._write()
        except Exception as error:
            if not is_outage(error):
                raise
            if not self.is_failing:
                logger.warning(
                    "%s cannot be written now (%s); its lines are kept", self.path, error
                )
            self.is_failing = True

    def _write(self) -> None:
        """Write all that is not in the file yet; an object is written anew as a whole."""
        if self.file is None:
            self.uploaded = time.monotonic()
            self.check()
            write_file(self.fs, self.path, "".join(line + "\n" for line in self.lines).encode())
            self.unwritten = b""
        if self.file is not None and self.good_bytes < self.file_bytes:
            self.file.truncate(self.good_bytes)
            self.file_bytes = self.good_bytes
        while self.unwritten and self.file is not None:
            num_bytes = self.file.write(self.unwritten)
            self.file_bytes = self.good_bytes = self.good_bytes + num_bytes
            self.unwritten = self.unwritten[num_bytes:]
        self.is_failing = False

    def close(self) -> None:
        """Let the file go; nothing can be written after this."""
        if self.file is not None:
            self.file.close()


def read_lines(fs: AbstractFileSystem, path: str) -> list[str]:
    """Read the whole lines of a step log; what a crash or a power cut tore is left out."""
    try:
        text = fs.cat_file(path).decode(errors="replace")
    except FileNotFoundError:
        return []
    return [line for line in text.split("\n")[:-1] if is_object(line)]


def is_object(line: str) -> bool:
    """Say whether a line is a JSON object; one with a lost block in it may still end in }."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def read_metrics(fs: AbstractFileSystem, path: str) -> list[dict[str, Any]]:  # Any: JSON
    """Read a step log as a list of objects."""
    return [json.loads(line) for line in read_lines(fs, path)]


def read_from_before(folder: StageFolder) -> list[dict[str, Any]]:  # Any: JSON
    """Read a stage's metrics; what was measured before its first step stands there as step 0."""
    before = read_json(folder.fs, folder.path(BEFORE_FILE))
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    return records if before is None else [{"step": 0, "tokens": 0, **before}, *records]


def add_to_steps(
    fs: AbstractFileSystem,
    path: str,
    values: dict[int, dict[str, Any]],  # Any: JSON
) -> None:
    """Add values to the objects of some steps of a log that nobody else is writing."""
    records = [{**r, **values.get(r["step"], {})} for r in read_metrics(fs, path)]
    write_file(fs, path, "".join(json.dumps(record) + "\n" for record in records).encode())


class WandbRun(Protocol):
    """What is used of a Weights & Biases run."""

    def log(self, data: dict[str, Any], step: int | None = None) -> None:  # Any: as in wandb
        """Log values of a step."""

    def finish(self) -> None:
        """Close the run."""


class MetricsLogger:
    """Writes down what rank 0 has to say of each step; on other ranks it does nothing."""

    def __init__(
        self,
        folder: StageFolder | None,
        *,
        last_step: int,
        wandb: WandbRun | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Open a stage's logs, cut back to `last_step`.

        Args:
            folder: the stage's; None on other ranks than 0.
            last_step: what stands behind it is dropped.
            wandb: to whom each step is told too.
            check: raises an error where another group has the run.
        """
        self.last: dict[str, Any] = {}  # Any: JSON
        self.restored_last: dict[str, Any] = {}  # Any: JSON
        self.wandb = wandb
        self.logs: list[StepLog] = []
        if folder is not None:
            names = ("metrics.jsonl", "ledger.jsonl")
            folder.fs.makedirs(folder.path(), exist_ok=True)
            self.logs = [
                StepLog(folder.fs, folder.path(name), last_step=last_step, check=check)
                for name in names
            ]
            self.last = self.restored_last = self.logs[0].last()

    def record(self, values: dict[str, Any], ledger: dict[str, Any]) -> None:  # Any: JSON
        """Write down a new step."""
        self._finish_step()
        self.last = values
        for log, record in zip(self.logs, (values, ledger), strict=False):
            log.append(record)

    def amend(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Add values to the newest step."""
        self.last = {**self.last, **values}
        if self.logs and self.logs[0].lines:
            self.logs[0].amend(values)

    def flush(self) -> None:
        """Make all that was written durable."""
        for log in self.logs:
            log.flush()

    def close(self) -> None:
        """Send what is left to Weights & Biases, and close."""
        self._finish_step()
        self.flush()
        for log in self.logs:
            log.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _finish_step(self) -> None:
        """Send the newest step, to which nothing is added any more, to Weights & Biases."""
        if self.wandb is not None and self.last is not self.restored_last:
            self.wandb.log(self.last, step=self.last["step"])
