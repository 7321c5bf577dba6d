"""Lessons of several kinds, mixed once and for all, and kept as parquet beside what learns them.

The order is nanochat's: all examples in a list, source by source, shuffled with one seed. Written
down, a mixture is data like any other: it has a manifest, units and a plan, so training resumes in
it exactly, on any number of workers, and one can look at what a model was taught.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from nanoray.config import DataError, InputError
from nanoray.storage import write_json
from nanoray.task import Example, Lessons
from nanoray.text.chat import Message, check_conversation, content_parts

logger = logging.getLogger(__name__)

MIXTURE_SEED = 42
CONVERSATION_COLUMN = "conversation"
SCHEMA = pa.schema([("source", pa.string()), (CONVERSATION_COLUMN, pa.string())])
GROUP_CONVERSATIONS = 128
"""Per row group, the least that is read at a time."""
SHARD_CONVERSATIONS = 100_000
VALIDATION_SHARD = "validation.parquet"
"""The last by name, as a manifest wants it."""


@dataclass(frozen=True)
class Part:
    """What a mixture takes from one source."""

    lessons: Lessons
    epochs: float = 1.0
    """How often each example comes; with 1.5 the first half of them comes twice."""
    limit: int | None = None
    """Only the first so many examples."""

    @property
    def size(self) -> int:
        """Examples of one epoch."""
        return min(len(self.lessons), self.limit or len(self.lessons))

    @property
    def count(self) -> int:
        """Examples of all epochs."""
        return round(self.size * self.epochs)


def mixture_order(counts: Sequence[int], seed: int = MIXTURE_SEED) -> list[tuple[int, int]]:
    """Give (part, number in it) of every example, shuffled as nanochat (6.0) does."""
    order = [(part, index) for part, count in enumerate(counts) for index in range(count)]
    random.Random(seed).shuffle(order)
    return order


def write_mixture(
    fs: AbstractFileSystem,
    folder: str,
    training: Sequence[Part],
    validation: Sequence[Part],
    *,
    facts: dict[str, Any],  # Any: JSON
    skip_bad: bool,
) -> None:
    """Write a mixture into a folder, in place of what is there.

    Args:
        fs: of the folder.
        folder: gets the shards, and mixture.json when all of them are whole.
        training: what is mixed.
        validation: what is mixed to validate on.
        facts: what the mixture was asked for, to be written down.
        skip_bad: leave out conversations that cannot be learned from, with a warning.

    Raises:
        DataError: a conversation that cannot be learned from, by its place.
    """
    if fs.exists(folder):  # what an earlier start left half made would count as data
        fs.rm(folder, recursive=True)
    fs.makedirs(folder, exist_ok=True)
    counts = {
        name: _write_part(fs, folder, name, parts, skip_bad=skip_bad)
        for name, parts in (("train", training), ("validation", validation))
    }
    write_json(fs, f"{folder}/mixture.json", {**facts, "conversations": counts})


def _write_part(
    fs: AbstractFileSystem, folder: str, name: str, parts: Sequence[Part], *, skip_bad: bool
) -> dict[str, int]:
    """Write the shards for training, or the one for validation; gives how much came from where."""
    counts = Counter(dict.fromkeys((part.lessons.name for part in parts), 0))
    rows = _rows(parts, skip_bad=skip_bad)
    groups = iter(lambda: list(islice(rows, GROUP_CONVERSATIONS)), [])
    for shard, first in enumerate(groups):
        most = None if name == "validation" else SHARD_CONVERSATIONS // GROUP_CONVERSATIONS - 1
        file = VALIDATION_SHARD if name == "validation" else f"{name}-{shard:05d}.parquet"
        with fs.open(f"{folder}/{file}", "wb") as sink, pq.ParquetWriter(sink, SCHEMA) as writer:
            for group in chain([first], islice(groups, most)):
                counts.update(source for source, _ in group)
                columns = [pa.array(column, pa.string()) for column in zip(*group, strict=True)]
                writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
    if not sum(counts.values()):
        raise DataError(
            f"The mixture has no conversation for {name}. Give sources that have some, with --data "
            "or --mixture."
        )
    logger.info("mixed for %s: %s", name, ", ".join(f"{n:,} {s}" for s, n in counts.items()))
    return dict(counts)


def _rows(parts: Sequence[Part], *, skip_bad: bool) -> Iterator[tuple[str, str]]:
    """Give source and conversation of every example, in the order of the mixture."""
    skipped = 0
    for part, number in mixture_order([part.count for part in parts]):
        lessons, index = parts[part].lessons, number % parts[part].size
        try:
            text = written(example_of(lessons, index).messages)
        except InputError as error:
            place = place_of(lessons, index)
            problem = str(error) if place in str(error) else f"{place}: {error}"
            if not skip_bad:
                raise DataError(
                    f"{problem} Mend it, or leave such ones out with --skip-bad-conversations."
                ) from error
            skipped += 1
            if skipped <= 3:
                logger.warning("skipped %s", problem)
            continue
        yield lessons.name, text
    if skipped > 3:
        logger.warning("skipped %d bad conversations in all", skipped)


def example_of(lessons: Lessons, index: int) -> Example:
    """Give an example.

    Raises:
        InputError: the row that it is made of has not the shape that all have.
    """
    try:
        return lessons.example(index)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"The row has not the shape of its source ({type(error).__name__}: {error})."
        ) from error


def written(messages: Sequence[Message]) -> str:
    """Write a conversation as JSON, with what is rendered of it alone.

    Raises:
        InputError: it cannot be learned from.
    """
    check_conversation(messages)
    kept = [
        {"role": message["role"], "content": kept_content(message["content"], index)}
        for index, message in enumerate(messages)
    ]
    return json.dumps(kept, ensure_ascii=False)


def kept_content(content: Any, index: int) -> str | list[dict[str, str]]:  # Any: checked input
    """Give text, or parts without what else may stand in them."""
    if isinstance(content, str):
        return content
    return [{"type": kind, "text": text} for kind, text in content_parts(content, index)]


def place_of(lessons: Lessons, index: int) -> str:
    """Say where an example stands: file and line where the lessons know them."""
    where: Callable[[int], str] | None = getattr(lessons, "where", None)
    return where(index) if where else f"{lessons.name}, example {index}"
