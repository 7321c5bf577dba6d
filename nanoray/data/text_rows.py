"""Rows of text out of one parquet file, read with patience and a few hundred at a time."""

import os
import platform
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanoray.config import DataError
from nanoray.data.patient_file import open_patiently
from nanoray.storage import is_local, open_location, with_patience
from nanoray.storage_errors import first_line

PATIENCE_SECONDS = 1800.0
"""How long the storage of the text may fail; training waits for its data meanwhile."""
FIRST_PATIENCE_SECONDS = 60.0
"""The same for a folder of which this process has read nothing: perhaps others alone have it."""

ROWS_AT_ONCE = 256
"""Documents that are read at once: a row group may be as large as a file."""
BUFFER_BYTES = 2**23
"""Of a row group on remote storage that are read at once; by default Arrow reads all of it."""

_read_before = set[str]()
"""Local folders of which this process has read something."""


def read_text_rows(root: str, path: str, column: str, start: int, end: int) -> list[bytes | None]:
    """Read rows `start` to `end` of a column of strings, as bytes; None where there is none.

    Args:
        root: the folder of the data, on any storage.
        path: of the parquet file, relative to it.
        column: name of the column.
        start: the first row, counted over the file.
        end: one past the last row.

    Raises:
        DataError: the file is gone, may not be read, or is damaged.
        StorageError: the storage cannot be read for longer than `PATIENCE_SECONDS`.
    """
    address = f"{root}/{path}"
    texts: list[bytes | None] = []
    try:
        with _open(root, path) as source:
            buffer = 0 if isinstance(source, pa.MemoryMappedFile) else BUFFER_BYTES
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=buffer)
            first = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                inner = max(start - first, 0), min(end - first, num_rows)
                if inner[0] < inner[1]:
                    texts += _read_row_group(file, group, column, *inner)
                first += num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{address} cannot be read at rows {start} to {end} ({first_line(error)}). Fetch it "
            "again; if it is damaged where it comes from, begin anew without it."
        ) from error
    return texts


def _open(root: str, path: str) -> Any:  # Any: Arrow takes its own files and others
    """Open a shard: mapped into memory where it is a local file, else read with patience."""
    fs, name = open_location(f"{root}/{path}")
    if not is_local(fs):
        return open_patiently(fs, name, PATIENCE_SECONDS)
    seconds = PATIENCE_SECONDS if root in _read_before else FIRST_PATIENCE_SECONDS
    where = f"{name} (as {platform.node()} sees it)"
    source = with_patience(lambda: _map(root, name), seconds, where)
    _read_before.add(root)
    return source


def _map(root: str, name: str) -> pa.MemoryMappedFile:
    """Map a local file; one that is gone together with all its folder may come back."""
    try:
        return pa.memory_map(name)
    except PermissionError as error:
        raise DataError(f"{name} may not be read ({error.strerror}). Mend that.") from error
    except FileNotFoundError as error:
        if os.path.isdir(root) and os.listdir(root):
            raise DataError(f"{name} is gone. Restore it; the same command goes on.") from error
        raise


def _read_row_group(
    file: pq.ParquetFile, group: int, name: str, start: int, end: int
) -> list[bytes | None]:
    """Read some rows of a row group, of which never more than a few hundred are in memory."""
    texts: list[bytes | None] = []
    batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[name], use_threads=False)
    first = 0
    for batch in batches:
        if first >= end:
            break
        column = batch.column(0)
        before, behind = max(start - first, 0), min(end - first, len(column))
        if before < behind:
            texts += _as_bytes(column.slice(before, behind - before))
        first += len(column)
    return texts


def _as_bytes(column: pa.Array) -> list[bytes | None]:
    """Give strings as bytes: decoding is ours, because Arrow's would fail on a whole row group."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    binary: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return binary
