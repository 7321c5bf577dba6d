"""Sandboxes: Python that a model wrote runs in a process that can do nothing but compute.

A sandbox knows no file but those of its own folder and of Python itself, no network, no other
process and no environment; it is bounded in time, memory and files; and when it is closed, nothing
of it is left. How much of this holds is its level:

* `strong`: the kernel enforces all of it, by Landlock and a filter of system calls (Linux 5.13).
* `basic`: limits, an empty environment and a killed session. It stops accidents, not attacks.

Whoever runs a sandbox names its level and can record it; no level ever stands in for another.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self

from nanoray.config import InputError

logger = logging.getLogger(__name__)

Level = Literal["strong", "basic"]
LevelChoice = Literal["auto", "strong", "basic"]

CHILD = Path(__file__).with_name("sandbox_child.py")
MAX_MESSAGE_BYTES = 1_000_000
"""Of what a sandbox sends."""
LOOK = 0.2
"""Seconds between two looks at what a program has written to disk."""
START_SECONDS = 60.0
"""A start takes 50 ms; on a machine with more work than cores it may take seconds."""

PROBE = """
import os, socket

def fork():
    if os.fork() == 0:
        os._exit(0)

outside = receive().decode()
attempts = {
    "read a file": lambda: open(outside).close(),
    "write a file": lambda: open(outside, "a").close(),
    "change a file's mode": lambda: os.chmod(outside, 0o600),
    "open a socket": lambda: socket.socket().close(),
    "start a process": fork,
}
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    send(f"code in it can {name}".encode())
send(b"")
"""
"""Sends what it can do and should not be able to, and then an empty message."""


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use."""

    timeout_seconds: float = 5.0
    """From the moment it is ready; all its threads together get no more seconds of CPU."""
    memory_bytes: int = 512 * 2**20
    """Of address space, Python's own included."""
    file_bytes: int = 8 * 2**20
    """Of one file in its folder."""
    folder_bytes: int = 64 * 2**20
    """Of all files in its folder, within `LOOK` seconds."""
    open_files: int = 64
    """At once, the three standard ones and the channel's two included."""


class StoppedError(Exception):
    """The code in a sandbox will answer no more; the text says why, as in "timed out"."""


class SandboxError(RuntimeError):
    """A sandbox could not be started: no fault of the code that was to run in it."""


class LevelError(InputError):
    """A level that this machine does not have."""

    def __init__(self, level: str, problem: str) -> None:
        super().__init__(level, problem)
        self.level, self.problem = level, problem

    def __str__(self) -> str:
        return (
            f'The sandbox level "{self.level}" is not available here ({self.problem}). Use Linux '
            "5.13 or later, in a container one whose profile permits Landlock and seccomp, or the "
            'level "basic" if you trust the code.'
        )


class Sandbox:
    """A process in which a program runs; after the `with` block, nothing of it is left.

    The program exchanges messages with its owner by `receive() -> bytes` and `send(bytes)`, which
    are among its names. Its process is started by the constructor, and the program by
    `wait_until_ready`, so that several sandboxes can start at once. It must be used in the thread
    that made it, because on Linux it dies with that thread.

    Attributes:
        level: how strongly it is closed.
        deadline: when it is too late to exchange a message, as a time of `time.monotonic`;
            `wait_until_ready` sets it, and the owner may.
        folder: the one place where the program can write, and where it starts.
        process: the process; its id is also that of its session and its process group.
    """

    def __init__(self, program: str, *, level: Level, limits: Limits) -> None:
        self.program, self.level, self.limits = program, level, limits
        self.deadline = time.monotonic() + START_SECONDS
        self.folder = tempfile.mkdtemp(prefix="nanoray-sandbox-")
        cpu_seconds = math.ceil(limits.timeout_seconds) + 1
        bounds = (cpu_seconds, limits.memory_bytes, limits.file_bytes, limits.open_files)
        arguments = [level, str(os.getpid()), *map(str, bounds)]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(CHILD), *arguments],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                env={},
                start_new_session=True,
            )
        except BaseException:
            remove_folder(self.folder)
            raise
        os.set_blocking(self.requests.fileno(), False)

    @property
    def requests(self) -> IO[bytes]:
        """Give our end of the channel into the sandbox."""
        assert self.process.stdin is not None, "it was asked for"
        return self.process.stdin

    @property
    def replies(self) -> IO[bytes]:
        """Give our end of the channel out of the sandbox."""
        assert self.process.stdout is not None, "it was asked for"
        return self.process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Start the program, once its process has given up its rights.

        Raises:
            LevelError: this machine does not have the level.
            SandboxError: the process ended, or did not start within `START_SECONDS`.
        """
        try:
            self.send(self.program.encode("utf-8", "surrogatepass"))
            answer = self.receive().decode()
        except StoppedError as error:
            raise SandboxError(f"a sandbox did not start: its process {error}.") from error
        if answer != "ready":
            raise LevelError(self.level, answer)
        self.deadline = time.monotonic() + self.limits.timeout_seconds

    def send(self, message: bytes) -> None:
        """Send the program a message.

        Raises:
            StoppedError: it ended, or did not take the message before the deadline.
        """
        rest = memoryview(len(message).to_bytes(4, "big") + message)
        try:
            while rest:
                wait_for(self.requests, select.POLLOUT, self.deadline)
                rest = rest[os.write(self.requests.fileno(), rest) :]
        except BrokenPipeError:
            raise StoppedError(self.describe_end()) from None

    def receive(self) -> bytes:
        """Wait for the program's next message.

        Raises:
            StoppedError: it ended, sent more than `MAX_MESSAGE_BYTES`, or sent no whole message
                before the deadline.
        """
        size = int.from_bytes(self.read(4), "big")
        if size > MAX_MESSAGE_BYTES:
            raise StoppedError("output too large")
        return self.read(size)

    def read(self, size: int) -> bytes:
        """Read so many bytes of the program's messages."""
        data = bytearray()
        while len(data) < size:
            self.wait_for_replies()
            chunk = os.read(self.replies.fileno(), size - len(data))
            if not chunk:
                raise StoppedError(self.describe_end())
            data += chunk
        return bytes(data)

    def wait_for_replies(self) -> None:
        """Wait until there is something to read, with an eye on what the program writes to disk."""
        while True:
            try:
                wait_for(self.replies, select.POLLIN, min(self.deadline, time.monotonic() + LOOK))
                return
            except StoppedError:
                if folder_bytes(self.folder) > self.limits.folder_bytes:
                    raise StoppedError("wrote too much to disk") from None
                if time.monotonic() >= self.deadline:
                    raise

    def describe_end(self) -> str:
        """Say how the process ended, which has closed the channel; end it if it has not."""
        self.kill()
        code = self.process.wait()
        if code == -signal.SIGKILL:  # ours; or the kernel's, for want of CPU time or memory
            return "was killed or closed its channel"
        return "exited" if code >= 0 else f"crashed with {signal_name(-code)}"

    def kill(self) -> None:
        """Kill the whole session. Until it is waited for, its id cannot become another's."""
        if self.process.returncode is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS: of one that has ended
                self.process.kill()

    def close(self) -> None:
        """Kill what still runs, and remove all that it left."""
        self.kill()
        self.process.wait()
        self.requests.close()
        self.replies.close()
        remove_folder(self.folder)


def signal_name(number: int) -> str:
    """Give the name of a signal; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def folder_bytes(folder: str) -> int:
    """Sum what the files in a folder take on disk; what cannot be looked at is left out."""
    total, folders = 0, [folder]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def wait_for(pipe: IO[bytes], event: int, deadline: float) -> None:
    """Wait until a pipe can be read or written, or has been closed at its other end."""
    milliseconds = (deadline - time.monotonic()) * 1000
    poll = select.poll()  # select.select does not know file descriptors above 1023
    poll.register(pipe, event)
    if milliseconds <= 0 or not poll.poll(milliseconds):
        raise StoppedError("timed out")


def remove_folder(folder: str) -> None:
    """Remove a folder, whatever the code that wrote it did to hinder that.

    Folders may be forbidden even to their owner, so each is allowed first. They may be nested more
    deeply than a path can name or a recursion descend, so each is emptied into the topmost one.
    Links are removed, never followed. Nobody else may be writing to the folder any more.
    """
    if os.path.islink(folder) or not os.path.isdir(folder):
        Path(folder).unlink(missing_ok=True)
        return
    prefix, numbers = secrets.token_hex(16), itertools.count()
    os.chmod(folder, 0o700)
    while entries := list_folder(folder):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            for inner in list_folder(entry.path):
                os.rename(inner.path, f"{folder}/{prefix}-{next(numbers)}")
            os.rmdir(entry.path)
    os.rmdir(folder)


def list_folder(folder: str) -> list[os.DirEntry[str]]:
    """List what is in a folder, and allow the folders in it to be read and changed."""
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            os.chmod(entry.path, 0o700)
    return found


def choose_level(requested: LevelChoice) -> Level:
    """Give the level at which sandboxes will run, for the caller to use and to record.

    Args:
        requested: `strong`, `basic`, or `auto` for the strongest that this machine has.

    Raises:
        LevelError: `strong` is requested, and this machine does not have it.
    """
    if requested == "auto":
        return strongest_level()
    if requested == "strong" and (problem := why_not_strong()):
        raise LevelError("strong", problem)
    return requested


@functools.cache
def strongest_level() -> Level:
    """Give the strongest level that this machine has, found by attacking a sandbox from inside."""
    problem = why_not_strong()
    if problem:
        logger.warning("sandboxes are basic, not strong: %s", problem)
    return "basic" if problem else "strong"


@functools.cache
def why_not_strong() -> str | None:
    """Start a sandbox and attack it; give what is missing for `strong`, or None."""
    try:
        with (
            tempfile.NamedTemporaryFile() as outside,
            Sandbox(PROBE, level="strong", limits=Limits()) as sandbox,
        ):
            sandbox.wait_until_ready()
            sandbox.send(outside.name.encode())
            return sandbox.receive().decode() or None
    except LevelError as error:
        return error.problem
    except StoppedError as error:
        return f"a program in it {error}"
