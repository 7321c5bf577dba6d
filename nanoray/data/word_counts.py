"""How often each piece of text occurs, counted on the cluster and merged on the driver.

Sums do not depend on their order, so neither do the counts on the number of workers.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from nanoray.data.manifest import Manifest
from nanoray.data.plan import Unit, read_documents
from nanoray.data.ray_data import data_context, plain_errors
from nanoray.text.tokenizer import split_words

UNITS_PER_TASK = 4


@dataclass(frozen=True)
class WordCounter:
    """What a counting task needs to know."""

    manifest: "ray.ObjectRef[Manifest]"
    units: "ray.ObjectRef[list[Unit]]"
    pattern: str

    def count(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Count the words of the units whose indices are in the column `item`."""
        manifest, units = ray.get([self.manifest, self.units])
        counts: Counter[str] = Counter()
        for index in batch["item"].to_pylist():
            counts.update(split_words(read_documents(manifest, units[index]), self.pattern))
        words = pa.array([word.encode() for word in counts], pa.large_binary())
        yield pa.table({"word": words, "count": pa.array(counts.values(), pa.int64())})


def count_words(manifest: Manifest, units: list[Unit], pattern: str) -> dict[bytes, int]:
    """Count the words of all units, with Ray Data."""
    data_context()
    counter = WordCounter(ray.put(manifest), ray.put(units), pattern)
    tasks = -(-len(units) // UNITS_PER_TASK)
    counted = ray.data.from_items(list(range(len(units))), override_num_blocks=tasks).map_batches(
        counter.count, batch_size=None, batch_format="pyarrow"
    )
    total: Counter[bytes] = Counter()
    tables: Any = counted.iter_batches(
        batch_size=None, batch_format="pyarrow"
    )  # Any: as in feed.py
    with plain_errors():
        for table in tables:
            words, counts = table["word"].to_pylist(), table["count"].to_pylist()
            for word, count in zip(words, counts, strict=True):
                total[word] += count
    return total
