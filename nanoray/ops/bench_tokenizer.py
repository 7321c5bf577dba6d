"""How fast a tokenizer is trained on the cluster, and how fast it encodes."""

import importlib.util
import json
import statistics
import time
from dataclasses import dataclass

from nanoray.data.datasets import EMBEDDED
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import first_units, read_documents, split_units
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import (
    DOCUMENT_CHARS,
    SMALLEST_VOCABULARY,
    SPLIT_PATTERN,
    Tokenizer,
)

ENCODE_BYTES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class TokenizerBench:
    """Time the training of a tokenizer on all text of a dataset, and its encoding in one thread.

    Where the package `rustbpe` is installed, it is trained on the same text by turns.
    """

    data: str = EMBEDDED
    """Folder or glob of parquet files."""
    vocab_size: int = 8192
    """Ids, special tokens included."""
    repeats: int = 3
    """How often; the medians count."""


def bench_tokenizer(config: TokenizerBench) -> str:
    """Run the benchmark; gives the result as one line of JSON."""
    # `bench.py train` runs on machines without Ray, and the command line imports this file too.
    from nanoray.cluster import connection
    from nanoray.data.word_counts import count_words

    manifest = make_manifest(connection.absolute_address(config.data), "text")
    training, validation = split_units(manifest)
    units = first_units([*training, *validation], 10**18)
    began = time.perf_counter()
    connection.connect()
    connect_seconds = time.perf_counter() - began
    text = [document for unit in units for document in read_documents(manifest, unit)]
    counting, merging, rust = [], [], []
    for _ in range(config.repeats):
        began = time.perf_counter()
        counts = count_words(manifest, units, SPLIT_PATTERN)
        counted = time.perf_counter()
        merges = learn_merges(counts, config.vocab_size - SMALLEST_VOCABULARY)
        counting.append(counted - began)
        merging.append(time.perf_counter() - counted)
        if importlib.util.find_spec("rustbpe") is not None:
            rust.append(rustbpe_seconds(text, 256 + len(merges)))
    tokenizer = Tokenizer(merges)
    return json.dumps(
        {
            "benchmark": "tokenizer",
            "text_megabytes": sum(unit.num_bytes for unit in units) / 1e6,
            "distinct_words": len(counts),
            "connect_seconds": connect_seconds,
            "count_seconds": statistics.median(counting),
            "merge_seconds": statistics.median(merging),
            "train_seconds": statistics.median(map(sum, zip(counting, merging, strict=True))),
            "rustbpe_seconds": statistics.median(rust) if rust else None,
            "encode_megabytes_per_second": encode_speed(tokenizer, text),
            "tokenizer_hash": tokenizer.hash,
        }
    )


def rustbpe_seconds(text: list[str], vocab_size: int) -> float:
    """Time nanochat's own trainer on the same text, cut as ours is."""
    import rustbpe  # no dependency: compared with where it is installed

    began = time.perf_counter()
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        (document[:DOCUMENT_CHARS] for document in text), vocab_size, pattern=SPLIT_PATTERN
    )
    return time.perf_counter() - began


def encode_speed(tokenizer: Tokenizer, text: list[str]) -> float:
    """Measure how many megabytes a second are encoded in one thread."""
    num_bytes, seconds = 0, 0.0
    for document in text:
        if num_bytes > ENCODE_BYTES:
            break
        began = time.perf_counter()
        tokenizer.encode_array(document)
        seconds += time.perf_counter() - began
        num_bytes += len(document.encode())
    return num_bytes / 1e6 / seconds
