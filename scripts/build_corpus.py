"""Build the embedded corpus from the public-domain texts it is made of.

    python scripts/build_corpus.py FOLDER

FOLDER holds austen.parquet, factbook.parquet and sotu.parquet with a column `text`. Documents are
shuffled over all three, because the last shard is the validation part and should be like the
others.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nanoray.data.datasets import EMBEDDED

SOURCES = ("austen", "factbook", "sotu")
NUM_SHARDS = 10
SEED = 42


def build(folder: Path) -> None:
    """Write the shards into the package."""
    documents: list[str] = []
    for source in SOURCES:
        documents += pq.read_table(folder / f"{source}.parquet")["text"].to_pylist()
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(documents))
    for shard, indices in enumerate(np.array_split(order, NUM_SHARDS)):
        table = pa.table({"text": [documents[index] for index in indices]})
        path = Path(EMBEDDED) / f"shard_{shard:02d}.parquet"
        pq.write_table(
            table,
            path,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            store_schema=False,
        )


if __name__ == "__main__":
    build(Path(sys.argv[1]))
