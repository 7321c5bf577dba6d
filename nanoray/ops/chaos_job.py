"""A job under observation: its process, what it prints and when, and how far its run has come."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nanoray.events import Event, read_events
from nanoray.metrics import read_metrics
from nanoray.storage import StageFolder, is_local

PRETRAIN = Path(__file__).parents[2] / "jobs" / "pretrain.py"
LAST_LINES = 20


class WatchedJob:
    """`python jobs/pretrain.py ARGUMENTS`, which can be killed and given again."""

    def __init__(self, folder: StageFolder, arguments: list[str], address: str) -> None:
        """Name the job; `address` is the cluster's.

        Args:
            folder: of the stage that the job runs.
            arguments: of the command.
            address: of the cluster.
        """
        self.folder, self.arguments = folder, arguments
        self.environment = {**os.environ, "RAY_ADDRESS": address}
        self.lines: list[tuple[float, str]] = []
        self.poll_seconds = 0.1 if is_local(folder.fs) else 1.0
        self._process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> None:
        """Give the command, with some arguments more."""
        self._process = subprocess.Popen(
            [sys.executable, str(PRETRAIN), *self.arguments, *more],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self.reader.start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        """Keep what the process prints, with the time."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.lines.append((time.time(), line.rstrip()))

    @property
    def pid(self) -> int:
        """The driver's process."""
        assert self._process is not None, "started"
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How the process ended; None while it runs."""
        return self._process.poll() if self._process else None

    def wait(self) -> None:
        """Wait for the end of the process."""
        if self._process is not None:
            self._process.wait()

    def kill(self) -> None:
        """End the driver as `kill -9` does, if it runs."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def steps(self) -> list[dict[str, Any]]:  # Any: JSON
        """Give the lines of metrics.jsonl; of a storage that is away, none."""
        try:
            return read_metrics(self.folder.fs, self.folder.path("metrics.jsonl"))
        except OSError:
            return []

    def newest_step(self) -> int:
        """Give the newest step made; 0 before there is one."""
        return int(([{"step": 0}, *self.steps()])[-1]["step"])

    def events(self) -> list[Event]:
        """Give what happened to the run."""
        return read_events(self.folder)

    def first_line_after(self, moment: float, *signs: str) -> float | None:
        """Give the time of the first line after a moment that has one of the signs in it."""
        later = [at for at, line in self.lines if at > moment and any(s in line for s in signs)]
        return later[0] if later else None

    def last_lines(self) -> str:
        """Give the end of what the job printed."""
        return "\n".join(line for _, line in self.lines[-LAST_LINES:])
