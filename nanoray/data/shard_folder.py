"""A folder of shards in a storage: which of them are there, and fetching the others.

A few shards are under way at a time. Each one that was verified is noted in `checksums.json`, so
that a later start trusts it by its size alone.
"""

import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from nanoray.config import DATASETS_FOLDER, StorageError
from nanoray.data.download import (
    Downloader,
    Patience,
    RemoteFile,
    StoppedError,
    own_part,
    part_file,
    put_in_place,
    sha256_of,
)
from nanoray.progress import duration
from nanoray.storage import RunFolder, is_local, open_location, read_json, write_json

logger = logging.getLogger(__name__)

NUM_THREADS = 4
"""Shards that are fetched at a time (nanochat)."""
LET_GO_SECONDS = 1.0
"""How long the end of a fetch waits for threads that may be in a silent connection."""
DRAW_SECONDS = 0.1


class ShardFolder:
    """The shards of one dataset, and the record of those that were verified."""

    def __init__(self, storage: str, path: str, file_bytes: float) -> None:
        self.storage, self.file_bytes = storage, file_bytes
        self.address = f"{storage}/{path}"
        self.fs, self.root = open_location(self.address)
        self.writing = threading.Lock()

    def path(self, name: str) -> str:
        """Name a file of the folder."""
        return f"{self.root}/{name}"

    def part(self, name: str) -> str:
        """Name the local file in which a shard arrives."""
        return part_file(self.fs, self.path(name))

    def missing(self, names: list[str]) -> list[str]:
        """Choose the shards that are not there in the size that was verified.

        Raises:
            StorageError: the storage cannot be read.
        """
        try:
            entries = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            return names
        except Exception as error:  # each filesystem has its own errors; all mean the same here
            reason = str(error) or type(error).__name__
            raise StorageError(
                f"--storage {self.storage} cannot be read ({reason}). Give one that can."
            ) from error
        found = {str(entry["name"]).rpartition("/")[2]: entry["size"] for entry in entries}
        records = self.records()
        return [n for n in names if n not in found or records.get(n, {}).get("bytes") != found[n]]

    def records(self) -> dict[str, dict[str, int | str | None]]:
        """Read the size and SHA-256 of each shard that was verified."""
        saved = read_json(self.fs, self.path("checksums.json")) or {}
        return dict(saved.get("files", {}))

    def record(self, name: str, num_bytes: int, sha256: str | None) -> None:
        """Note that a shard is there and verified.

        Two processes may write at the same time, and one note be lost: then that shard is hashed
        once more by the next start, and no worse.
        """
        with self.writing:
            files = {**self.records(), name: {"bytes": num_bytes, "sha256": sha256}}
            path = self.path("checksums.json")
            write_json(self.fs, path, {"files": dict(sorted(files.items()))})

    def holds(self, name: str, ask: Callable[[], RemoteFile]) -> bool:
        """Say whether a shard is there and right; without a record, the server is asked."""
        try:
            num_bytes = self.fs.info(self.path(name))["size"]
        except FileNotFoundError:
            return False
        record = self.records().get(name)
        if record is not None:
            return bool(record["bytes"] == num_bytes)
        remote = ask()
        if remote.num_bytes != num_bytes:
            return False
        if remote.sha256 is not None:
            with self.fs.open(self.path(name), "rb") as file:
                if sha256_of(file) != remote.sha256:
                    return False
        self.record(name, num_bytes, remote.sha256)
        return True

    def need_bytes(self, names: list[str]) -> float:
        """Say how much room on this machine's disk the fetching of these shards still takes."""
        if not is_local(self.fs):  # only what is under way, before it is uploaded
            return self.file_bytes * min(NUM_THREADS, len(names))
        return sum(max(0.0, self.file_bytes - size_or_zero(self.part(name))) for name in names)

    def free_bytes(self) -> int:
        """Say how much room is left on the disk on which shards arrive."""
        folder = os.path.dirname(self.part("any"))
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return shutil.disk_usage(folder).free

    def describe(self, names: list[str]) -> str:
        """Say how much the fetching of these shards is, and where to."""
        size = f"{self.file_bytes * len(names) / 1e9:,.1f} GB"
        room = f", where {self.free_bytes() / 1e9:,.1f} GB are free" if is_local(self.fs) else ""
        return f"{len(names):,} shards, about {size}, to {self.address}{room}"

    def check_space(self, names: list[str]) -> None:
        """Check that shards can be written, and that there is room for them.

        Raises:
            StorageError: they cannot, or there is not.
        """
        need, free = self.need_bytes(names), self.free_bytes()
        if need > free:
            place = os.path.dirname(self.part(names[0]))
            raise StorageError(
                f"{place} has {free / 1e9:.1f} GB free, and {len(names):,} more shards need "
                f"{need / 1e9:.1f} GB. Free some space, fetch less, or give another --storage."
            )
        RunFolder(self.storage, DATASETS_FOLDER).check_writable(0)

    def fetch(self, urls: dict[str, str], patience: Patience, stream: TextIO | None = None) -> None:
        """Fetch what is missing of these shards, given by name.

        Raises:
            DataError: a shard could not be fetched.
            StorageError: the storage cannot be written, or is too small.
        """
        names = self.missing(list(urls))
        if not names:
            return
        self.check_space(names)
        logger.info("fetching %s", self.describe(names))
        Fetch(self, {name: urls[name] for name in names}, patience, stream).run()


def size_or_zero(path: str) -> int:
    """Give the size of a local file, or 0 where there is none."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


class Fetch:
    """Shards on their way into a folder, a few at a time."""

    def __init__(
        self, folder: ShardFolder, urls: dict[str, str], patience: Patience, stream: TextIO | None
    ) -> None:
        self.folder, self.urls = folder, urls
        arrived = {name: size_or_zero(folder.part(name)) for name in urls}
        self.display = FetchDisplay(arrived, folder.file_bytes, stream)
        self.downloader = Downloader(patience, self.display.log)
        self.todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def run(self) -> None:
        """Fetch all; the first failure ends the others, and what has arrived of them is kept."""
        for name in self.urls:
            self.todo.put(name)
        # Daemons, because a thread that waits for a silent server cannot be called off: without
        # them the process would end half a minute after Ctrl-C.
        count = min(NUM_THREADS, len(self.urls))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for _ in self.urls:
                outcome = self.done.get()
                if isinstance(outcome, Exception):
                    raise outcome
                self.display.finish(outcome)
        except KeyboardInterrupt:
            self.display.log("stopped; what has arrived is kept, and the next fetch goes on there")
            raise
        finally:
            self.downloader.stop.set()
            deadline = time.monotonic() + LET_GO_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            self.downloader.close()
            self.display.close()

    def _work(self) -> None:
        """Fetch one shard after another, until none is left or one has failed."""
        while not self.downloader.stop.is_set():
            try:
                name = self.todo.get_nowait()
                self._fetch(name)
            except (queue.Empty, StoppedError):
                return
            except Exception as error:  # `run` raises it, in the thread that waits for the shards
                self.done.put(error)
                return
            self.done.put(name)

    def _fetch(self, name: str) -> None:
        """Bring one shard into the folder, unless it is there already."""
        folder, part, url = self.folder, self.folder.part(name), self.urls[name]
        with own_part(part, self.downloader.stop, self.display.log):
            if folder.holds(name, lambda: self.downloader.ask(url)):
                os.remove(part)
                self.display.leave_out(name)
                return
            remote = self.downloader.fetch(url, part, lambda n, of: self.display.show(name, n, of))
            num_bytes = os.path.getsize(part)
            put_in_place(part, folder.fs, folder.path(name))
            folder.record(name, num_bytes, remote.sha256)


class FetchDisplay:
    """Shows what arrives: a bar on a terminal, one line per shard elsewhere."""

    def __init__(
        self, arrived: dict[str, int], file_bytes: float, stream: TextIO | None = None
    ) -> None:
        self.arrived, self.sizes = dict(arrived), dict.fromkeys(arrived, file_bytes)
        self.total, self.total_arrived = file_bytes * len(arrived), sum(arrived.values())
        self.gained, self.num_done = 0, 0
        self.began = self.drawn = time.monotonic()
        self.lock = threading.Lock()
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns = (
                BarColumn(None),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = Progress(
                TextColumn("{task.fields[num_done]}/{task.fields[num_shards]} shards"),
                *columns,
                console=self.console,
            )
            self.task = self.bar.add_task(
                "",
                total=self.total,
                completed=self.total_arrived,
                num_done=0,
                num_shards=len(arrived),
            )
            self.bar.start()

    def log(self, line: str) -> None:
        """Print one line of news."""
        self.console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    def show(self, name: str, arrived: int, size: int | None) -> None:
        """Show how far a shard is; its size is an estimate until the server has named it."""
        with self.lock:
            self.gained += max(0, arrived - self.arrived[name])
            self._count(name, arrived, self.sizes[name] if size is None else size)
            if time.monotonic() - self.drawn > DRAW_SECONDS:
                self._draw()

    def leave_out(self, name: str) -> None:
        """Take a shard out of the sums, because it was there."""
        with self.lock:
            self._count(name, 0, 0)

    def finish(self, name: str) -> None:
        """Tell that a shard is there, and how long the others take at the speed so far."""
        with self.lock:
            self.num_done += 1
            speed = self.gained / max(1e-9, time.monotonic() - self.began)
            left = self.total - self.total_arrived
            self._draw()
        pace = f", {speed / 1e6:.1f} MB/s, about {duration(left / speed)} left" if speed else ""
        if self.bar is None:
            self.log(f"{name} is there, {self.num_done} of {len(self.sizes)}{pace}")
        elif self.num_done == 1:
            self.log(f"the first shard is there{pace}")

    def close(self) -> None:
        """Take the bar away from the terminal's live area."""
        if self.bar is not None:
            self._draw()
            self.bar.stop()

    def _count(self, name: str, arrived: int, size: float) -> None:
        """Keep the sums."""
        self.total_arrived += arrived - self.arrived[name]
        self.total += size - self.sizes[name]
        self.arrived[name], self.sizes[name] = arrived, size

    def _draw(self) -> None:
        """Move the bar to where the sums are; seldom, since that costs more than a chunk."""
        self.drawn = time.monotonic()
        if self.bar is not None:
            self.bar.update(
                self.task, completed=self.total_arrived, total=self.total, num_done=self.num_done
            )
