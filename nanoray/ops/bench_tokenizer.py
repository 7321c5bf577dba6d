"""How fast a tokenizer is trained on the cluster, and how fast it encodes."""

import json
import statistics
import time
from dataclasses import dataclass

from nanoray import connection
from nanoray.data.datasets import EMBEDDED
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import first_units, read_documents, split_units
from nanoray.data.word_counts import count_words
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import SMALLEST_VOCABULARY, SPLIT_PATTERN, Tokenizer

ENCODE_BYTES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class TokenizerBench:
    """Time the training of a tokenizer on all text of a dataset, and its encoding in one thread."""

    data: str = EMBEDDED
    """Folder or glob of parquet files."""
    vocab_size: int = 8192
    """Ids, special tokens included."""
    repeats: int = 3
    """How often; the medians count."""


def bench_tokenizer(config: TokenizerBench) -> str:
    """Run the benchmark; gives the result as one line of JSON."""
    manifest = make_manifest(connection.absolute_address(config.data), "text")
    training, validation = split_units(manifest)
    units = first_units([*training, *validation], 10**18)
    began = time.perf_counter()
    connection.connect()
    connect_seconds = time.perf_counter() - began
    counting, merging = [], []
    for _ in range(config.repeats):
        began = time.perf_counter()
        counts = count_words(manifest, units, SPLIT_PATTERN)
        counted = time.perf_counter()
        merges = learn_merges(counts, config.vocab_size - SMALLEST_VOCABULARY)
        counting.append(counted - began)
        merging.append(time.perf_counter() - counted)
    tokenizer = Tokenizer(merges)
    text = [document for unit in units for document in read_documents(manifest, unit)]
    num_bytes, encoding = 0, 0.0
    for document in text:
        if num_bytes > ENCODE_BYTES:
            break
        began = time.perf_counter()
        tokenizer.encode_array(document)
        encoding += time.perf_counter() - began
        num_bytes += len(document.encode())
    return json.dumps(
        {
            "benchmark": "tokenizer",
            "text_megabytes": sum(unit.num_bytes for unit in units) / 1e6,
            "distinct_words": len(counts),
            "connect_seconds": connect_seconds,
            "count_seconds": statistics.median(counting),
            "merge_seconds": statistics.median(merging),
            "train_seconds": statistics.median(map(sum, zip(counting, merging, strict=True))),
            "encode_megabytes_per_second": num_bytes / 1e6 / encoding,
            "tokenizer_hash": tokenizer.hash,
        }
    )
