"""How one node sees the storage of a run: whether it is the same one, and how fast it is."""

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from fsspec import AbstractFileSystem

from nanoray.config import StorageError
from nanoray.ops.doctor_node import space_of
from nanoray.storage import fsync_path, is_local, missing_folders, open_location, write_file

PIECE_BYTES = 2**20
MOST_BYTES = 64 * PIECE_BYTES
MOST_SECONDS = 4.0
"""For writing, and again for reading: on slow storage a smaller file tells as much."""
MARKER = "driver"


@dataclass(frozen=True)
class StorageFacts:
    """What a node saw of the storage."""

    is_visible: bool = False
    """It has the file that the driver wrote."""
    write_bytes_per_second: float = 0.0
    """Flushed to the disk, where the storage is a filesystem."""
    read_bytes_per_second: float = 0.0
    rename_seconds: float | None = None
    """None on object stores, which have no rename."""
    free_bytes: int | None = None
    """None where nobody can say."""
    error: str | None = None
    """Why the node could not use the storage."""


@contextlib.contextmanager
def probe_folder(storage: str) -> Iterator[str]:
    """Give the address of a folder in which nodes may write, with the driver's file in it.

    Nothing of it is left behind, nor of a storage that was not there.

    Raises:
        StorageError: it cannot be written.
    """
    fs, root = open_location(storage)
    fresh = missing_folders(root) if is_local(fs) else []
    name = f".doctor-{uuid.uuid4().hex[:12]}"
    try:
        try:
            write_file(fs, f"{root}/{name}/{MARKER}", b"written by the driver")
        except Exception as error:  # each filesystem has its own errors; all mean the same here
            raise StorageError(str(error) or type(error).__name__) from error
        yield f"{storage}/{name}"
    finally:
        # What went wrong above is what counts; a storage may also forbid to delete.
        with contextlib.suppress(Exception):
            fs.rm(f"{root}/{name}", recursive=True)
        with contextlib.suppress(OSError):  # a run may have begun there meanwhile
            for folder in fresh:
                os.rmdir(folder)


def try_storage(address: str, node: str) -> StorageFacts:
    """Write, rename, read and delete a file in the driver's probe folder.

    Errors are part of what is reported: every filesystem has its own.
    """
    try:
        fs, folder = open_location(address)
        if not fs.exists(f"{folder}/{MARKER}"):
            return StorageFacts(free_bytes=free_space(fs, folder))
        return use_storage(fs, folder, node)
    except Exception as error:
        return StorageFacts(error=str(error) or type(error).__name__)


def use_storage(fs: AbstractFileSystem, folder: str, node: str) -> StorageFacts:
    """Measure what a checkpoint asks of the storage."""
    aside, path = f"{folder}/{node}.tmp", f"{folder}/{node}"
    try:
        began = time.perf_counter()
        size, written = write_pieces(fs, aside)
        writing = time.perf_counter() - began
        renaming = None
        if is_local(fs):
            began = time.perf_counter()
            os.replace(aside, path)
            fsync_path(folder)
            renaming = time.perf_counter() - began
            forget_cached(path)
        else:
            path = aside
        began = time.perf_counter()
        count, read = read_pieces(fs, path, size)
        reading = time.perf_counter() - began
        if read != written[: len(read)]:
            return StorageFacts(is_visible=True, error="it gave back other bytes than were written")
    finally:
        for left in (aside, path):
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(left)
    return StorageFacts(
        is_visible=True,
        write_bytes_per_second=size / writing,
        read_bytes_per_second=count / max(reading, 1e-9),
        rename_seconds=renaming,
        free_bytes=free_space(fs, folder),
    )


def write_pieces(fs: AbstractFileSystem, path: str) -> tuple[int, list[str]]:
    """Write a file for as long as it may take; gives its size, and the hash of each piece."""
    deadline = time.perf_counter() + MOST_SECONDS
    hashes: list[str] = []
    with fs.open(path, "wb") as file:
        while len(hashes) * PIECE_BYTES < MOST_BYTES and time.perf_counter() < deadline:
            piece = os.urandom(PIECE_BYTES)  # what can be compressed would seem fast on some disks
            file.write(piece)
            hashes.append(hashlib.sha256(piece).hexdigest())
    if is_local(fs):
        fsync_path(path)
    return len(hashes) * PIECE_BYTES, hashes


def read_pieces(fs: AbstractFileSystem, path: str, size: int) -> tuple[int, list[str]]:
    """Read a file for as long as it may take; gives how much that was, and each piece's hash."""
    deadline = time.perf_counter() + MOST_SECONDS
    hashes: list[str] = []
    with fs.open(path, "rb") as file:
        while len(hashes) * PIECE_BYTES < size and time.perf_counter() < deadline:
            hashes.append(hashlib.sha256(file.read(PIECE_BYTES)).hexdigest())
    return len(hashes) * PIECE_BYTES, hashes


def forget_cached(path: str) -> None:
    """Ask the kernel to read a file from its disk next time, not from memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def free_space(fs: AbstractFileSystem, path: str) -> int | None:
    """Give the bytes that are free, where the storage is a filesystem."""
    return space_of(path).free if is_local(fs) else None
