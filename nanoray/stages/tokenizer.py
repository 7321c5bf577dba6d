"""Training a tokenizer: words counted on the cluster, merges learned on the driver."""

import contextlib
import logging
import os
import time
from dataclasses import dataclass

from nanoray.cluster import connection
from nanoray.config import DataError, InputError, require_positive
from nanoray.data.datasets import resolve_data
from nanoray.data.manifest import Manifest, make_manifest
from nanoray.data.plan import first_units, read_documents, split_units
from nanoray.data.word_counts import count_words
from nanoray.storage import is_local, missing_folders, open_location, write_file
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import SMALLEST_VOCABULARY, SPLIT_PATTERN, Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer

logger = logging.getLogger(__name__)

SAMPLE_DOCUMENTS = 200


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Train a tokenizer on the training part of a dataset, and write it as JSON."""

    output: str = "tokenizer.json"
    """File to write: a path, or an address (s3://, gs://, ...)."""
    data: str | None = None
    """Folder, glob or address of parquet files, climbmix, or fineweb-edu; else embedded texts."""
    storage: str | None = None
    """Where named datasets are kept once they are fetched; by default ./runs."""
    text_column: str = "text"
    """Column of the parquet files that holds the text."""
    skip_bad_shards: bool = False
    """Leave shards out whose footer is damaged, with a warning, instead of stopping."""
    vocab_size: int = 65_536
    """Ids, special tokens included."""
    max_chars: int = 2_000_000_000
    """How many bytes of text are read."""

    def __post_init__(self) -> None:
        require_positive("vocab_size", self.vocab_size, least=SMALLEST_VOCABULARY)
        require_positive("max_chars", self.max_chars)


def train_tokenizer(config: TokenizerConfig) -> str:
    """Train and write a tokenizer; gives a sentence on how well it compresses."""
    storage = connection.absolute_address(config.storage or "runs")
    address = resolve_data(
        config.data, storage, num_bytes=config.max_chars, locate=connection.absolute_address
    )
    manifest = make_manifest(address, config.text_column, skip_bad_shards=config.skip_bad_shards)
    output = connection.absolute_address(config.output)
    check_output(output)
    connection.connect()
    began = time.monotonic()
    tokenizer = learn_tokenizer(manifest, config.vocab_size, config.max_chars)
    seconds = time.monotonic() - began
    save_tokenizer(tokenizer, output)
    return (
        f"wrote {output}: {tokenizer.vocab_size:,} ids, "
        f"{bytes_per_token(tokenizer, manifest):.3f} bytes per token on held-out text, "
        f"trained in {seconds:.1f} s, hash {tokenizer.hash[:16]}"
    )


def check_output(address: str) -> None:
    """Raise an InputError if no file can be written there: training takes longer than a look."""
    fs, path = open_location(address)
    if fs.isdir(path):
        raise InputError(f"--output {address} is a folder. Name a file in it.")
    probe = f"{path}.probe"
    fresh = missing_folders(os.path.dirname(path)) if is_local(fs) else []
    try:
        write_file(fs, probe, b"probe")
        fs.rm_file(probe)
    except Exception as error:  # each filesystem has its own errors
        raise InputError(
            f"--output {address} cannot be written ({error}). Name a file in a folder that can."
        ) from error
    finally:
        # The training may be refused, and must leave nothing behind. Another file may have moved in
        # meanwhile, or the folders were not made.
        for folder in fresh:
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def learn_tokenizer(manifest: Manifest, vocab_size: int, max_chars: int) -> Tokenizer:
    """Train on the first `max_chars` of the training part; needs a connection to Ray.

    Raises:
        DataError: there is no text.
        InputError: the text has too few different words for so many ids.
    """
    training, _ = split_units(manifest)
    counts = count_words(manifest, first_units(training, max_chars), SPLIT_PATTERN)
    if not counts:
        raise DataError(
            f"--data {manifest.root} has no text in its training part: all documents are empty. "
            f"Give others, or name another column than {manifest.text_column!r} with --text-column."
        )
    num_merges = vocab_size - SMALLEST_VOCABULARY
    merges = learn_merges(counts, num_merges)
    if len(merges) < num_merges:
        raise InputError(
            f"--vocab-size {vocab_size} is more than the text gives: it has "
            f"{SMALLEST_VOCABULARY + len(merges)} ids at most. Give that, or more text."
        )
    return Tokenizer(merges)


def bytes_per_token(tokenizer: Tokenizer, manifest: Manifest) -> float:
    """Measure compression on the first documents of the validation part.

    Raises:
        DataError: there are none.
    """
    _, validation = split_units(manifest)
    read = (read_documents(manifest, unit)[:SAMPLE_DOCUMENTS] for unit in validation)
    documents = next((documents for documents in read if documents), [])
    if not documents:
        where = manifest.validation_shard or "the end of its only file"
        raise DataError(
            f"--data {manifest.root} has no text in {where}, on which the model is validated. "
            "Take it away, or give a last file with text."
        )
    num_tokens = sum(len(tokenizer.encode_array(text)) for text in documents)
    return sum(len(text.encode()) for text in documents) / num_tokens
