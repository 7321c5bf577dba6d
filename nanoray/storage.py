"""Where runs are kept: the names of all files of a run, and writes that are whole or not there.

A location is a folder, or any address that fsspec knows (s3://, gs://, memory://). Locations are
`str` throughout: `Path("s3://bucket")` would become `s3:/bucket`.
"""

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from nanoray.config import FORMAT_VERSION, RunReplacedError, StorageError, require_no_secret

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0

EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""The package that each common protocol needs beside fsspec."""

START_FILE = "start.json"
"""In the folder of a stage that comes after another one: what it started from."""

SAVED_FILE = "saved.json"
"""In the folder of a stage that has committed a step: the newest one."""

STORAGE_CLIENTS = {
    *("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "azure"),
    *("httpx", "httpx2", "huggingface_hub"),
}
"""Packages whose own errors, which are no OSErrors, come through fsspec."""


def open_location(address: str) -> tuple[AbstractFileSystem, str]:
    """Give the filesystem of an address, and the path in it (absolute for a local folder).

    Raises:
        InputError: there is a secret in the address.
        StorageError: an unknown protocol, or one whose package is not installed.
    """
    require_no_secret(address)
    protocol = address.split("://")[0] if "://" in address else "file"
    try:
        # Listings are read again each time: a cached one would hide a checkpoint that another
        # process has just committed.
        fs, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        package = EXTRAS.get(protocol, "its package")
        raise StorageError(
            f"{address} needs {package}. Install it: pip install {package}"
        ) from error
    except ValueError as error:
        raise StorageError(
            f"{address} has the unknown protocol {protocol!r}. Give a folder, or s3://..., gs://..."
        ) from error
    return fs, str(path).rstrip("/")


def is_local(fs: AbstractFileSystem) -> bool:
    """Say whether files of this filesystem can be renamed, fsynced and appended to."""
    return isinstance(fs, LocalFileSystem)


def fsync_path(path: str) -> None:
    """Flush a local file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def missing_folders(path: str) -> list[str]:
    """List a local folder and those above it that do not exist, the innermost first."""
    missing = []
    while path and not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    return missing


def write_file(fs: AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a file that is seen either whole or not at all, also after a power cut."""
    if not is_local(fs):
        fs.pipe_file(path, content)  # object stores show an object only when it is complete
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    aside = f"{path}.tmp-{uuid.uuid4().hex}"  # two hosts may share a folder, and a process id
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)  # on a full disk it would keep what little space there is
        raise
    fsync_path(os.path.dirname(path))


def write_json(fs: AbstractFileSystem, path: str, value: dict[str, Any]) -> None:  # Any: JSON
    """Write JSON with the format version first, whole or not at all."""
    text = json.dumps({"format_version": FORMAT_VERSION, **value}, indent=1)
    write_file(fs, path, (text + "\n").encode())


def read_json(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:  # Any: JSON
    """Read a JSON object; None where the file does not exist.

    Raises:
        StorageError: the file exists and is not a JSON object.
    """
    try:
        content = fs.cat_file(path)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(content)
    except ValueError as error:
        raise StorageError(
            f"{path} is not JSON ({error}). Restore it, or move it aside."
        ) from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} holds no JSON object. Restore it, or move it aside.")
    return value


def list_folder(fs: AbstractFileSystem, path: str) -> list[str]:
    """List the names in a folder, sorted; empty where there is no such folder."""
    try:
        return sorted(
            str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False)
        )
    except (FileNotFoundError, NotADirectoryError):
        return []


def move_folder(fs: AbstractFileSystem, source: str, target: str) -> None:
    """Move a folder with all that is in it, to a place where nothing is."""
    if is_local(fs):
        os.rename(source, target)
        return
    # Not `fs.mv`: on S3 it also copies the folder itself, which is no object there, and fails.
    for path in fs.find(source):
        fs.copy(path, target + str(path).removeprefix(source))
    fs.rm(source, recursive=True)


def is_outage(error: BaseException) -> bool:
    """Say whether an error is one of storage: of the operating system, or of a client library."""
    own = type(error).__module__.partition(".")[0] in STORAGE_CLIENTS
    return own or isinstance(error, OSError)


def with_patience(work: Callable[[], T], seconds: float, place: str) -> T:
    """Call what needs storage, again and again for as long as the storage fails.

    Args:
        work: called until it ends, or raises what is no `is_outage`.
        seconds: how long that may take.
        place: the storage, for messages.

    Raises:
        StorageError: it took longer.
    """
    began, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    while True:
        try:
            return work()
        except Exception as error:
            if not is_outage(error):
                raise
            failed = time.monotonic() - began
            if failed + pause > seconds:
                raise StorageError(
                    f"{place} could not be reached for {failed:.0f} s ({error}). "
                    "Mend the storage; the same command goes on from the newest checkpoint."
                ) from error
            logger.warning("%s cannot be reached (%s); tried again in %.0f s", place, error, pause)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class RunFolder:
    """The folder of one run: its address, and the name of everything in it."""

    def __init__(self, storage: str, run: str) -> None:
        self.storage, self.run = storage, run
        self.fs, base = open_location(storage)
        self.root = f"{base}/{run}"

    def __str__(self) -> str:
        return self.fs.unstrip_protocol(self.root).removeprefix("file://")

    def path(self, *names: str) -> str:
        """Join names under the run's folder."""
        return "/".join((self.root, *names))

    def stage(self, stage: str) -> "StageFolder":
        """Give the folder of one stage of this run."""
        return StageFolder(self, stage)

    @property
    def tokenizer_file(self) -> str:
        """The tokenizer that every stage of this run uses."""
        return self.path("tokenizer.json")

    @property
    def tokenizer_address(self) -> str:
        """The same file as `open_location` takes it, with its protocol."""
        return f"{self}/tokenizer.json"

    def read_state(self) -> dict[str, Any]:  # Any: JSON
        """Read run.json: the attempt number and the stages done; empty before the first attempt."""
        return read_json(self.fs, self.path("run.json")) or {}

    def begin_attempt(self, stage: str, driver: str = "", *, after: int = 0) -> int:
        """Number a new attempt; gives the number.

        A group of workers with an older number was cut off, and may not commit any more. So this
        comes before anybody looks for the step from which the new one starts.

        Args:
            stage: that it trains.
            driver: who begins it. The first attempt of a driver takes the run from whoever had it.
            after: the newest attempt of the same driver, if it has begun one.

        Raises:
            RunReplacedError: another driver has begun one since.
        """
        state = self.read_state()
        newest = int(state.get("attempt", 0))
        if after and state.get("driver") != driver:
            raise RunReplacedError(str(self), after, newest, state.get("driver", ""))
        if state.get("stage") != stage:
            state.update(stage=stage, start_step=0)
        state.update(attempt=newest + 1, driver=driver)
        write_json(self.fs, self.path("run.json"), state)
        return newest + 1

    def record_start(self, attempt: int, step: int) -> None:
        """Record from which step an attempt starts.

        Raises:
            RunReplacedError: there is a newer one.
        """
        self.check_attempt(attempt)
        write_json(self.fs, self.path("run.json"), {**self.read_state(), "start_step": step})

    def check_attempt(self, attempt: int, driver: str | None = None) -> None:
        """Raise an error unless an attempt may still write.

        Args:
            attempt: its number.
            driver: who began it, where the caller knows: two that begin at the same moment may take
                the same number, and one of them has it.

        Raises:
            RunReplacedError: there is a newer one, or this is another's.
            OSError: none so new was begun here, so this is not where the run is: the folder below
                a mount that has gone, or one of another machine.
        """
        state = self.read_state()
        newest, owner = int(state.get("attempt", 0)), state.get("driver", "")
        if newest > attempt or (newest == attempt and driver and owner != driver):
            raise RunReplacedError(str(self), attempt, newest, owner)
        if newest < attempt:
            raise OSError(
                f"it has no attempt {attempt} there, only {newest}: it is not the storage in which "
                "the run began, as all machines must have it"
            )

    def mark_done(self, stage: str) -> None:
        """Record that a stage is finished."""
        state = self.read_state()
        done = [name for name in state.get("stages_done", []) if name != stage]
        state["stages_done"] = [*done, stage]
        write_json(self.fs, self.path("run.json"), state)

    def is_done(self, stage: str) -> bool:
        """Say whether a stage is recorded as finished."""
        return stage in self.read_state().get("stages_done", [])

    def is_begun(self, stage: str) -> bool:
        """Say whether a stage is recorded as finished, or as going on from a checkpoint."""
        state = self.read_state()
        goes_on = state.get("stage") == stage and bool(state.get("start_step", 0))
        return goes_on or stage in state.get("stages_done", [])

    def forget_stage(self, stage: str) -> None:
        """Record that a stage is not finished, because it begins anew."""
        state = self.read_state()
        state["stages_done"] = [name for name in state.get("stages_done", []) if name != stage]
        if state.get("stage") == stage:
            state["start_step"] = 0
        write_json(self.fs, self.path("run.json"), state)

    def check_writable(self, need_bytes: int) -> None:
        """Write and delete a small file, and compare the free space with the need.

        Raises:
            StorageError: the location cannot be written, or has less than `need_bytes` free.
        """
        probe = self.path(f".probe-{uuid.uuid4().hex}")
        fresh = missing_folders(self.root) if is_local(self.fs) else []
        try:
            for patience in (True, True, False):
                try:
                    write_file(self.fs, probe, b"probe")
                    break
                except FileNotFoundError:  # another start has just taken the empty folder away
                    if not patience:
                        raise
            free = shutil.disk_usage(self.root).free if is_local(self.fs) else None
            self.fs.rm_file(probe)
            # What follows may be refused, and must leave nothing behind. Another run may have moved
            # in meanwhile.
            with contextlib.suppress(OSError):
                for folder in fresh:
                    os.rmdir(folder)
        except Exception as error:  # each filesystem has its own errors; all mean the same here
            reason = str(error) or type(error).__name__
            raise StorageError(
                f"--storage {self.storage} cannot be written ({reason}). Give a folder that can."
            ) from error
        if free is not None and free < need_bytes:
            raise StorageError(
                f"--storage {self.storage} has {free / 1e9:.1f} GB free and the run needs "
                f"{need_bytes / 1e9:.1f} GB. Free some space, lower --keep-last, raise "
                "--keep-every, or give another."
            )


class StageFolder:
    """The folder of one stage (pretrain, midtrain, sft, rl) of a run."""

    def __init__(self, run: RunFolder, stage: str) -> None:
        self.run, self.name, self.fs = run, stage, run.fs

    def path(self, *names: str) -> str:
        """Join names under the stage's folder."""
        return self.run.path(self.name, *names)

    def __str__(self) -> str:
        return f"{self.run}/{self.name}"

    def read_config(self) -> dict[str, Any] | None:  # Any: JSON
        """Read the config that the stage began with; None for a stage that has not begun."""
        return read_json(self.fs, self.path("config.json"))

    def check_present(self) -> None:
        """Raise an OSError if the folder of a stage that has begun cannot be seen.

        On storage that is away, a run with checkpoints looks like one that has none. What was
        moved aside, damaged or rolled back, stays in the folder of the checkpoints.
        """
        if self.read_config() is None:
            raise FileNotFoundError(f"{self.path('config.json')} is not there")
        begun = self.run.read_state()
        had_steps = begun.get("stage") == self.name and begun.get("start_step", 0)
        has_saved = had_steps or read_json(self.fs, self.path(SAVED_FILE)) is not None
        if has_saved and not list_folder(self.fs, self.path("checkpoints")):
            raise FileNotFoundError(
                f"{self.path('checkpoints')} is not there, or empty; --fresh begins anew"
            )

    def note_saved(self, step: int) -> None:
        """Keep that a step was committed, where it is seen also if the checkpoints are not."""
        write_json(self.fs, self.path(SAVED_FILE), {"step": step})

    def write_config(self, config: dict[str, Any]) -> None:  # Any: JSON
        """Keep the config that the stage runs with."""
        write_json(self.fs, self.path("config.json"), config)

    def move_aside(self) -> str | None:
        """Rename the folder with a time stamp; gives its new name, or None where there was none."""
        if not self.fs.exists(self.path()):
            return None
        name = f"{self.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"
        # An object store would mix the files of two stages that were moved within one second.
        taken = [n for n in list_folder(self.fs, self.run.path()) if n.startswith(name)]
        target = self.run.path(f"{name}-{len(taken) + 1}" if taken else name)
        move_folder(self.fs, self.path(), target)
        return target
