"""Small real shards for the tests of the data modules."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_row_groups(path: str | Path, groups: Sequence[Sequence[str | None]]) -> None:
    """Write a parquet file with one row group for each list of documents."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as writer:
        for texts in groups:
            writer.write_table(pa.table({"text": pa.array(texts, pa.string())}))


def write_shard(path: str | Path, texts: Sequence[str | None], row_group_size: int = 4) -> None:
    """Write a parquet file with row groups of one size."""
    starts = range(0, len(texts), row_group_size)
    write_row_groups(path, [texts[start : start + row_group_size] for start in starts])


def write_shards(folder: Path, names: Sequence[str]) -> Path:
    """Write small shards, each with documents of its own; gives the folder."""
    for seed, name in enumerate(names):
        write_shard(folder / name, sentences(10, seed))
    return folder


def sentences(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    """Draw documents of 1 to `longest` words, each with its number, so that no two are alike."""
    draw = np.random.default_rng(seed)
    words = ["sun", "river", "of", "the", "stone", "Ω", "winter's", "41"]
    return [
        f"{seed}.{i} " + " ".join(draw.choice(words, draw.integers(1, longest + 1)))
        for i in range(count)
    ]


def raw_strings(values: Sequence[bytes]) -> pa.Array:
    """Give a string array of any bytes, be they UTF-8 or not, as careless writers make them."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.string(), len(values), buffers)
