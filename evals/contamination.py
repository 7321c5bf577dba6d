"""Which questions of a benchmark stand in the training text: by n-grams of words, on the cluster.

A question counts as contaminated if any n words in a row of it, lower-case and without punctuation,
are in the text too (n = 13: Brown et al. 2020). It then may be known by heart, and not answered.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from evals.core import CoreExam, Item
from evals.exam import Exam, TaskExam
from evals.exam_plan import ExamConfig, plan_exams
from evals.statistics import wilson_interval
from nanoray.cluster import connection
from nanoray.config import InputError, require_positive
from nanoray.data.datasets import resolve_data
from nanoray.data.manifest import Manifest, make_manifest
from nanoray.data.plan import Unit, first_units, read_documents, split_units
from nanoray.text.chat import content_parts

logger = logging.getLogger(__name__)

Hashes = npt.NDArray[np.uint64]

WORD = re.compile(r"\w+")
BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that every word of an n-gram counts in all 64 bits."""
UNITS_PER_TASK = 4
SHOWN = 3
"""Contaminated questions of each task that are shown."""
MOST_WORDS_KEPT = 2_000_000
"""Hashes of words that a process remembers."""


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig(ExamConfig):
    """Find the questions of a benchmark that stand in the text a model is trained on."""

    data: str | None = None
    """Folder or glob of parquet files, an address, or a named dataset; by default what nanoray
    brings along."""
    storage: str | None = None
    """Where named datasets are kept once they are fetched; by default ./runs."""
    text_column: str = "text"
    """Column of the parquet files that holds the text."""
    max_bytes: int = 10**10
    """How much of the text is read, from its beginning."""
    ngram: int = 13
    """Words in a row that must be the same."""
    json: bool = False
    """Print JSON only, with the numbers of all questions that were found."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("ngram", self.ngram, least=2)
        require_positive("max_bytes", self.max_bytes)


@dataclass
class Overlap:
    """What was found of one task."""

    name: str
    num_questions: int
    too_short: int
    """Questions with fewer words than an n-gram has: nothing can be said of them."""
    found: list[int] = field(default_factory=list)
    """Numbers of the contaminated ones, in the order in which the task is asked."""

    @property
    def num_checked(self) -> int:
        """How many could be compared."""
        return self.num_questions - self.too_short


def find_contamination(config: ContaminationConfig) -> str:
    """Compare all questions with all of the training text; gives a table, or JSON.

    Raises:
        InputError: tasks or text are not there.
    """
    plan = plan_exams(config)
    storage = connection.absolute_address(config.storage or "runs")
    address = resolve_data(
        config.data, storage, num_bytes=config.max_bytes, locate=connection.absolute_address
    )
    manifest = make_manifest(address, config.text_column, skip_bad_shards=False)
    questions = {exam.name: question_texts(exam) for exam in plan.exams}
    hashes = {
        name: [
            np.concatenate([ngram_hashes(text, config.ngram) for text in texts]) for texts in each
        ]
        for name, each in questions.items()
    }
    wanted = np.unique(np.concatenate([h for each in hashes.values() for h in each]))
    if not len(wanted):
        raise InputError(f"No question has --ngram {config.ngram} words. Give less.")
    connection.connect()
    units = first_units(split_units(manifest)[0], config.max_bytes)
    logger.info("looking for %s n-grams in %d units of text", f"{len(wanted):,}", len(units))
    present = find_hashes(manifest, units, wanted, config.ngram)
    overlaps = [
        Overlap(
            name,
            num_questions=len(each),
            too_short=sum(not len(h) for h in each),
            found=[i for i, h in enumerate(each) if len(h) and np.isin(h, present).any()],
        )
        for name, each in hashes.items()
    ]
    return as_json(overlaps, config) if config.json else as_table(overlaps, questions)


def question_texts(exam: Exam) -> list[list[str]]:
    """Give the texts of each question: an n-gram never reaches from one of them to another."""
    if isinstance(exam, CoreExam):
        return [texts_of(item) for item in exam.items]
    assert isinstance(exam, TaskExam), "there are no other kinds"
    return [
        [
            text
            for number, message in enumerate(exam.task.example(i).messages)
            for _, text in content_parts(message["content"], number)
        ]
        for i in range(len(exam))
    ]


def texts_of(item: Item) -> list[str]:
    """Give what of an example of CORE could stand in a text: questions are followed by answers."""
    if "choices" in item:
        others = [text for i, text in enumerate(item["choices"]) if i != item["gold"]]
        return [f"{item['query']} {item['choices'][item['gold']]}", *others]
    contexts = item.get("context_options") or [item["context"]]
    return [f"{context} {item['continuation']}" for context in contexts]


@cache
def hash_ngram_factor(n: int, place: int) -> np.uint64:
    """Give the weight of a word at a place of an n-gram: BASE^(n - 1 - place) mod 2^64."""
    return np.uint64(pow(int(BASE), n - 1 - place, 2**64))


_word_hashes: dict[str, int] = {}


def word_hash(word: str) -> int:
    """Hash a word, the same way in every process."""
    known = _word_hashes.get(word)
    if known is None:
        known = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        if len(_word_hashes) < MOST_WORDS_KEPT:
            _word_hashes[word] = known
    return known


def ngram_hashes(text: str, n: int) -> Hashes:
    """Hash all n-grams of the words of a text, (number of words - n + 1,)."""
    words = np.array([word_hash(word) for word in WORD.findall(text.lower())], dtype=np.uint64)
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    total: Hashes = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        total += words[place : place + count] * hash_ngram_factor(n, place)
    return total


@dataclass(frozen=True)
class HashFinder:
    """What a task on the cluster needs to know."""

    manifest: "ray.ObjectRef[Manifest]"
    units: "ray.ObjectRef[list[Unit]]"
    wanted: "ray.ObjectRef[Hashes]"
    """Sorted."""
    n: int

    def find(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Give the wanted hashes that the units hold whose numbers are in the column `item`."""
        manifest, units, wanted = ray.get([self.manifest, self.units, self.wanted])
        found = [np.empty(0, dtype=np.uint64)]
        for index in batch["item"].to_pylist():
            for document in read_documents(manifest, units[index]):
                hashes = ngram_hashes(document, self.n)
                places = np.searchsorted(wanted, hashes).clip(max=len(wanted) - 1)
                found.append(hashes[wanted[places] == hashes])
        yield pa.table({"hash": np.unique(np.concatenate(found))})


def find_hashes(manifest: Manifest, units: list[Unit], wanted: Hashes, n: int) -> Hashes:
    """Find which of the wanted hashes are in the text, with Ray Data."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    finder = HashFinder(ray.put(manifest), ray.put(units), ray.put(wanted), n)
    tasks = -(-len(units) // UNITS_PER_TASK)
    found = ray.data.from_items(list(range(len(units))), override_num_blocks=tasks).map_batches(
        finder.find, batch_size=None, batch_format="pyarrow"
    )
    present = [np.empty(0, dtype=np.uint64)]
    tables: Any = found.iter_batches(batch_size=None, batch_format="pyarrow")  # Any: Ray's types
    present += [table["hash"].to_numpy() for table in tables]
    return np.unique(np.concatenate(present))


def as_json(overlaps: list[Overlap], config: ContaminationConfig) -> str:
    """Write all that was found."""
    rows = [
        {"task": o.name, "checked": o.num_checked, "too_short": o.too_short, "found": o.found}
        for o in overlaps
    ]
    return json.dumps({"ngram": config.ngram, "data": config.data, "tasks": rows}, indent=1)


def as_table(overlaps: list[Overlap], questions: dict[str, list[list[str]]]) -> str:
    """Write a line for each task, and the beginnings of some questions that were found."""
    lines = [f"{'':34} found  of   share     95 % interval   too short"]
    for o in overlaps:
        if not o.num_checked:
            lines.append(f"{o.name:34} nothing to compare: {o.too_short:,} are too short")
            continue
        low, high = wilson_interval(len(o.found), o.num_checked)
        lines.append(
            f"{o.name:34} {len(o.found):5,} {o.num_checked:7,}  {len(o.found) / o.num_checked:.4f}"
            f"  {low:.4f} - {high:.4f}  {o.too_short:,}"
        )
        lines += [f"    {' | '.join(questions[o.name][i])[:90]!r}" for i in o.found[:SHOWN]]
    return "\n".join(lines)
