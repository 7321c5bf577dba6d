"""What the training data are: every shard with its row groups, and which part is for validation.

The manifest is made once, when a run begins, from the footers of the parquet files. Its hash is in
every checkpoint: a resume over other data is refused, with the difference named.
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from nanoray.config import DataError
from nanoray.data.listing import READ_PATIENCE_SECONDS, find_shards
from nanoray.data.patient_file import open_patiently
from nanoray.storage import is_local
from nanoray.storage_errors import first_line

logger = logging.getLogger(__name__)

UNIT_BYTES = 4_000_000
"""Text in a unit at most: little enough to be read anew when a run resumes."""
LARGE_ROW_GROUP_UNITS = 8
"""A row group of more units than that costs much to read from remote storage."""
FOOTER_READERS = 16
MAGIC = (b"PAR1", b"PARE")
"""How a parquet file ends; the second one has an encrypted footer."""


@dataclass(frozen=True)
class Shard:
    """One parquet file, as its footer describes it."""

    path: str
    """Relative to the manifest's root."""
    row_groups: tuple[tuple[int, int], ...]
    """(rows, bytes of text) of each row group."""
    sha256: str
    """Of the footer, which holds the place and size of every column chunk."""

    @property
    def num_bytes(self) -> int:
        """Bytes of uncompressed text."""
        return sum(size for _, size in self.row_groups)


@dataclass(frozen=True)
class Manifest:
    """All shards of a run's data, and what of them is for validation."""

    root: str
    """Address of the folder; free to change, since the shards are known by their hashes."""
    text_column: str
    """The column that is read."""
    shards: tuple[Shard, ...]
    """In the order of their names."""
    validation_shard: str | None
    """Path of the shard that is for validation; None where the last units of the only shard are."""
    unit_bytes: int = UNIT_BYTES
    """Largest text of a unit."""

    @property
    def hash(self) -> str:
        """SHA-256 over all that decides which rows there are."""
        content = asdict(self)
        del content["root"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give the manifest as JSON, with its hash."""
        return {"hash": self.hash, **asdict(self)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Manifest":  # Any: JSON
        """Rebuild a manifest from `to_json`."""
        shards = tuple(
            Shard(s["path"], tuple((int(n), int(size)) for n, size in s["row_groups"]), s["sha256"])
            for s in saved["shards"]
        )
        return cls(
            saved["root"],
            saved["text_column"],
            shards,
            saved["validation_shard"],
            saved["unit_bytes"],
        )


def make_manifest(address: str, text_column: str, *, skip_bad_shards: bool = False) -> Manifest:
    """List the parquet files at an address: a folder, a glob or one file, on any filesystem.

    Raises:
        DataError: nothing there, no text column, or a damaged shard (unless they are to be
        skipped).
        StorageError: the storage cannot be read now.
    """
    fs, root, paths = find_shards(address)
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        found = list(pool.map(lambda path: _read_shard(fs, root, path, text_column), paths))
    bad = [problem for problem in found if isinstance(problem, DataError)]
    shards = tuple(shard for shard in found if isinstance(shard, Shard))
    if bad and not skip_bad_shards:
        raise bad[0]
    for problem in bad:
        logger.warning("skipped a shard: %s", problem)
    shards = tuple(shard for shard in shards if shard.num_bytes)
    if not shards:
        raise DataError(
            f"--data {address} holds no text in column {text_column!r}. Give other files."
        )
    warn_of_equal_shards(shards)
    if not is_local(fs):
        warn_of_large_row_groups(root, shards)
    if len(shards) > 1:
        return Manifest(root, text_column, shards, shards[-1].path)
    unit_bytes = max(1, min(UNIT_BYTES, shards[0].num_bytes // 20))
    return Manifest(root, text_column, shards, None, unit_bytes)


def warn_of_equal_shards(shards: tuple[Shard, ...]) -> None:
    """Say where a file is there twice: its text would be trained on more often, or held out too."""
    first = dict[str, str]()
    equal = [
        (shard.path, first[shard.sha256])
        for shard in shards
        if first.setdefault(shard.sha256, shard.path) != shard.path
    ]
    if equal:
        logger.warning(
            "%d of %d shards seem to be copies of another one, as %s is of %s. Their text counts "
            "twice; leave them out if that is not meant.",
            len(equal),
            len(shards),
            *equal[0],
        )


def warn_of_large_row_groups(root: str, shards: tuple[Shard, ...]) -> None:
    """Say where units are small parts of row groups: each is read from its group's beginning on."""
    largest = max(size for shard in shards for _, size in shard.row_groups)
    if largest > LARGE_ROW_GROUP_UNITS * UNIT_BYTES:
        logger.warning(
            "%s has row groups of up to %d MB of text. They are read from there in parts of %d MB, "
            "each time from the group's beginning, so some %d times in all. Write row groups of "
            "some %d MB, or fetch the files.",
            root,
            largest // 10**6,
            UNIT_BYTES // 10**6,
            largest // UNIT_BYTES // 2,
            UNIT_BYTES // 10**6,
        )


def _read_shard(fs: AbstractFileSystem, root: str, path: str, column: str) -> Shard | DataError:
    """Read one footer; a shard that cannot be used comes back as the error that says why."""
    name = f"{root}/{path}"
    if is_local(fs) and os.path.islink(name) and not os.path.exists(name):
        return DataError(
            f"{name} is a link to {os.readlink(name)}, where nothing is. "
            "Restore that, or leave the link out with --skip-bad-shards."
        )
    ending = _read_ending(fs, name)
    try:
        metadata = pq.ParquetFile(pa.BufferReader(ending)).metadata
    except (pa.ArrowException, OSError, ValueError) as error:  # of bytes that were read
        return DataError(
            f"{name} is no whole parquet file ({first_line(error)}). "
            "Fetch it again, or leave it out with --skip-bad-shards."
        )
    schema = metadata.schema.to_arrow_schema()
    if column not in schema.names:
        return DataError(
            f"{name} has no column {column!r}; it has {', '.join(map(repr, schema.names))}. "
            "Name the right one with --text-column."
        )
    if schema.names.count(column) > 1:
        return DataError(f"{name} has several columns {column!r}. Give them different names.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return DataError(
            f"{name} holds {kind} in column {column!r}, not text. "
            "Name a column of strings with --text-column."
        )
    chunk = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_groups = tuple(
        (g.num_rows, g.column(chunk).total_uncompressed_size) for g in groups if g.num_rows
    )
    return Shard(path, row_groups, hashlib.sha256(ending[:-8]).hexdigest())


def _read_ending(fs: AbstractFileSystem, name: str) -> bytes:
    """Read a parquet file's footer, its length, and the magic number that ends the file.

    Reading comes before understanding, so that storage which fails is not taken for a bad shard.
    """
    try:
        with open_patiently(fs, fs._strip_protocol(name), READ_PATIENCE_SECONDS) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            ending: bytes = file.read(8)
            if ending[4:] not in MAGIC:
                return ending
            length = min(int.from_bytes(ending[:4], "little"), size - 8)
            file.seek(size - 8 - length)
            return file.read(length) + ending
    except ValueError as error:  # of HTTP
        raise DataError(
            f"{name} cannot be read in parts ({first_line(error)}). Fetch it with all others, and "
            "give their folder."
        ) from error


def check_unchanged(saved: Manifest, address: str) -> Manifest:
    """Check that an address still has a run's data; gives the manifest with its new root.

    Files that were added since are left alone: they are training data of a later run.

    Raises:
        DataError: a shard is missing or has changed; the text names the first three.
        StorageError: the storage cannot be read now.
    """
    fs, root, paths = find_shards(address)
    with ThreadPoolExecutor(FOOTER_READERS) as pool:
        present = set(paths)
        shards = [shard for shard in saved.shards if shard.path in present]
        now = pool.map(lambda shard: _read_shard(fs, root, shard.path, saved.text_column), shards)
        changed = [
            f"{old.path} has changed" for old, new in zip(shards, now, strict=True) if new != old
        ]
    differences = [f"{s.path} is missing" for s in saved.shards if s.path not in present] + changed
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise DataError(
            f"--data {address} is not what this run began with: "
            f"{', '.join(differences[:3])}{more}. "
            "Restore the files, or begin anew with another --run or --fresh."
        )
    return Manifest(root, saved.text_column, saved.shards, saved.validation_shard, saved.unit_bytes)
