"""The data plan: a fixed, endless sequence of rows, and a cursor that says where a run stands.

    manifest + seed        position 0, 1, 2, ...   each a unit; an epoch is a permutation of all
    units tokenizer + packing    row 0, 1, 2, ...        of a unit, a pure function of the unit

So the global sequence of rows knows no number of workers and no batch size, and `Cursor(position,
row)` is all that a resume needs. Positions run on through the epochs, without a barrier between
them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from nanoray.config import DataError
from nanoray.data.conversations import CHAT_PACKINGS, pack_conversations
from nanoray.data.manifest import Manifest
from nanoray.data.packing import PACKING_VERSION, PackedUnit, Tokens, pack
from nanoray.data.text_rows import read_text_rows
from nanoray.data.unit_cache import UnitCache
from nanoray.text.tokenizer import Tokenizer

MIN_UNIT_SHARE = 4
"""Row groups smaller than this part of a unit are joined: each unit drops its last row."""

SAMPLE_UNITS, SAMPLE_BYTES = 64, 2**22
"""Most that is packed to see how many rows a unit gives."""

WAITING_FOR_DATA = "waiting for data"
"""What a rank says that it does while it has no rows."""


@dataclass(frozen=True)
class Unit:
    """A range of documents of one shard: what is read, tokenized and packed at a time."""

    shard: int
    """Index into the manifest's shards."""
    start: int
    """First row of the range, counted over the whole shard."""
    end: int
    """One past the last row."""
    num_bytes: int
    """Text in it, estimated from the footer."""


@dataclass(frozen=True, order=True)
class Cursor:
    """The next row to be consumed: unit position (over all epochs) and row within the unit."""

    position: int = 0
    row: int = 0


class DataPlan:
    """Which token is in which row, for ever."""

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        *,
        max_seq_len: int,
        packing: str,
        seed: int,
        cache: UnitCache | None = None,
    ) -> None:
        """Plan the rows of some data; `cache` keeps packed units for other plans like this one."""
        self.manifest, self.tokenizer = manifest, tokenizer
        self.max_seq_len, self.packing, self.seed = max_seq_len, packing, seed
        self.cache = cache
        self.units, self.validation_units = split_units(manifest)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel as what the plan is made of: the list of units can be long."""
        rebuild = partial(
            DataPlan,
            max_seq_len=self.max_seq_len,
            packing=self.packing,
            seed=self.seed,
            cache=self.cache,
        )
        return rebuild, (self.manifest, self.tokenizer)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all that decides the sequence of rows."""
        content = [*self._decides_rows(), self.seed]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _decides_rows(self) -> list[object]:
        """List what decides the rows of each unit; the order of the units is another matter."""
        manifest, tokenizer = self.manifest.hash, self.tokenizer.hash
        return [manifest, tokenizer, self.max_seq_len, self.packing, PACKING_VERSION]

    @cached_property
    def rows_hash(self) -> str:
        """SHA-256 over all that decides the rows of each unit."""
        return hashlib.sha256(json.dumps(self._decides_rows()).encode()).hexdigest()

    def unit(self, position: int) -> Unit:
        """Give the unit at an absolute position."""
        epoch, index = divmod(position, len(self.units))
        return self.units[int(permutation(self.seed, epoch, len(self.units))[index])]

    def pack(self, position: int) -> PackedUnit:
        """Read, tokenize and pack the unit at an absolute position: a pure function."""
        return self.pack_unit(self.unit(position))

    def pack_unit(self, unit: Unit) -> PackedUnit:
        """Read, tokenize and pack one unit, or take it from the cache."""
        if self.cache is None:
            return self._pack_anew(unit)
        name = f"{self.rows_hash[:16]}/{unit.shard:05d}-{unit.start}-{unit.end}"
        packed = self.cache.load(name)
        if packed is None:
            packed = self._pack_anew(unit)
            self.cache.save(name, packed)
        return packed

    def _pack_anew(self, unit: Unit) -> PackedUnit:
        """Read, tokenize and pack one unit."""
        if self.packing in CHAT_PACKINGS:
            return pack_conversations(
                read_documents(self.manifest, unit),
                self.tokenizer,
                row_len=self.max_seq_len + 1,
                learn=CHAT_PACKINGS[self.packing],
            )
        bos = np.array([self.tokenizer.bos_id], np.int32)
        documents = [
            np.concatenate([bos, self.tokenizer.encode_array(text)])
            for text in read_documents(self.manifest, unit)
        ]
        rows, dropped = pack(documents, self.max_seq_len + 1, self.tokenizer.bos_id, self.packing)
        return PackedUnit(rows, sum(map(len, documents)), dropped)

    def validation_rows(self, num_rows: int) -> Tokens:
        """Give the first rows of the validation part, (at most num_rows, T+1)."""
        rows = np.empty((0, self.max_seq_len + 1), np.int32)
        for unit in self.validation_units:
            if len(rows) >= num_rows:
                break
            rows = np.concatenate([rows, self.pack_unit(unit).rows])
        return rows[:num_rows]

    def sample_rows_per_unit(self) -> float:
        """Estimate how many rows a unit of the mean size gives, by packing some.

        Bytes per token alone would not do: what is left of a unit is dropped, and a unit may be
        shorter than a row, or in another language than the rest.
        """
        num_units = num_rows = num_bytes = 0
        while num_units < min(SAMPLE_UNITS, len(self.units)) and num_bytes < SAMPLE_BYTES:
            num_bytes += self.unit(num_units).num_bytes
            num_rows += len(self.pack(num_units).rows)
            num_units += 1
        # The sample may be of two units, and those larger than most or smaller.
        return (num_rows + 0.5) * self.num_bytes / (num_bytes * len(self.units))

    def num_units_for(self, num_rows: int, rows_per_unit: float, first: int = 0) -> int:
        """Estimate, on the safe side, how many units from a position on give that many rows.

        Units differ in size, so it is their text that is counted.
        """
        wanted = 2 * num_rows / rows_per_unit * self.num_bytes / len(self.units)
        position = first
        while wanted > 0:
            epochs = int(wanted // self.num_bytes) if position % len(self.units) == 0 else 0
            wanted -= epochs * self.num_bytes or self.unit(position).num_bytes
            position += epochs * len(self.units) or 1
        return position - first + min(len(self.units), 1000) + 16

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of text in an epoch, estimated from the footers."""
        return sum(unit.num_bytes for unit in self.units)


def split_units(manifest: Manifest) -> tuple[list[Unit], list[Unit]]:
    """Give the units for training and those for validation, in the order of the files.

    Raises:
        DataError: nothing is left for one of the two.
    """
    units = list(_units(manifest))
    if manifest.validation_shard is None:
        last = max(1, len(units) // 20)
        training, validation = units[:-last], units[-last:]
    else:
        held_out = [shard.path for shard in manifest.shards].index(manifest.validation_shard)
        training = [unit for unit in units if unit.shard != held_out]
        validation = [unit for unit in units if unit.shard == held_out]
    if not training:
        raise DataError(
            f"--data {manifest.root} has a single document, so nothing is left to validate on. "
            "Give more text."
        )
    return training, validation


def first_units(units: list[Unit], num_bytes: int) -> list[Unit]:
    """Give the units, in the order of the files, that hold the first `num_bytes` of text."""
    before = accumulate((unit.num_bytes for unit in units), initial=0)
    return [unit for unit, start in zip(units, before, strict=False) if start < num_bytes]


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, num_units: int) -> npt.NDArray[np.int64]:
    """Draw the order of the units in an epoch."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_units)


def _units(manifest: Manifest) -> Iterator[Unit]:
    """Cut each shard into ranges of rows: split large row groups, join small ones."""
    smallest = manifest.unit_bytes / MIN_UNIT_SHARE
    for index, shard in enumerate(manifest.shards):
        start = end = joined = 0
        for num_rows, num_bytes in shard.row_groups:
            if joined and joined + num_bytes > manifest.unit_bytes:
                yield Unit(index, start, end, joined)
                start, joined = end, 0
            end, joined = end + num_rows, joined + num_bytes
            if joined >= smallest:
                yield from _split(Unit(index, start, end, joined), manifest.unit_bytes)
                start, joined = end, 0
        if joined:
            yield Unit(index, start, end, joined)


def _split(unit: Unit, unit_bytes: int) -> Iterator[Unit]:
    """Cut a range of rows into equal parts of at most `unit_bytes`, as far as single rows allow."""
    num_rows = unit.end - unit.start
    parts = min(num_rows, -(-unit.num_bytes // unit_bytes))
    for i in range(parts):
        start, end = (unit.start + num_rows * j // parts for j in (i, i + 1))
        yield Unit(unit.shard, start, end, unit.num_bytes // parts)


def read_documents(manifest: Manifest, unit: Unit) -> list[str]:
    """Read the documents of a unit; empty ones are left out, bytes that are no UTF-8 become U+FFFD.

    Raises:
        DataError: the shard cannot be read.
        StorageError: the storage cannot be read for longer than `text_rows.PATIENCE_SECONDS`.
    """
    path = manifest.shards[unit.shard].path
    texts = read_text_rows(manifest.root, path, manifest.text_column, unit.start, unit.end)
    return [text.decode("utf-8", "replace") for text in texts if text]
