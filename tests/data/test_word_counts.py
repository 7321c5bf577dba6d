from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import regex

from nanoray.config import DataError
from nanoray.data.manifest import Manifest, make_manifest
from nanoray.data.plan import Unit, split_units
from nanoray.data.word_counts import UNITS_PER_TASK, count_words
from nanoray.text.tokenizer import SPLIT_PATTERN
from tests.data.shards import sentences, write_shard
from tests.driver import connected
from tests.running import Cluster

UNIT_BYTES = [100_000, 16_000, 300]
TEXTS = [*sentences(80), "tabs\tand  spaces\n\n", "straße, Ωmega", "", "I'll pay 1234567 $"]


@pytest.fixture(scope="module", autouse=True)
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_shard(tmp_path / "a.parquet", [*TEXTS, None])
    write_shard(tmp_path / "b.parquet", ["held out of the counts"])
    return make_manifest(str(tmp_path), "text")


def cut(manifest: Manifest, unit_bytes: int) -> list[Unit]:
    """Cut the training part into units of at most that much text."""
    return split_units(replace(manifest, unit_bytes=unit_bytes))[0]


def plain_counts(texts: list[str]) -> dict[bytes, int]:
    """Count in one process, document by document."""
    return Counter(word.encode() for text in texts for word in regex.findall(SPLIT_PATTERN, text))


@pytest.mark.cluster
@pytest.mark.parametrize("unit_bytes", UNIT_BYTES)
def test_the_counts_are_those_of_a_plain_loop_however_the_text_is_cut(manifest, unit_bytes):
    units = cut(manifest, unit_bytes)

    counts = count_words(manifest, units, SPLIT_PATTERN)

    assert counts == plain_counts(TEXTS)


@pytest.mark.cluster
def test_that_text_is_one_unit_one_task_of_several_and_many_tasks(manifest):
    numbers = [len(cut(manifest, unit_bytes)) for unit_bytes in UNIT_BYTES]

    assert numbers[0] == 1
    assert 1 < numbers[1] <= UNITS_PER_TASK
    assert numbers[2] > 3 * UNITS_PER_TASK


@pytest.mark.cluster
def test_only_the_units_that_are_asked_for_are_counted(manifest):
    units = cut(manifest, 300)

    counts = count_words(manifest, units[3:9], SPLIT_PATTERN)

    assert counts == plain_counts(TEXTS[units[3].start : units[8].end])


@pytest.mark.cluster
def test_words_are_bytes_split_by_the_pattern_that_is_given(manifest):
    counts = count_words(manifest, cut(manifest, 16_000), r"\p{L}+")

    assert counts[b"river"] == sum(text.split().count("river") for text in TEXTS)
    assert counts["Ωmega".encode()] == 1
    assert b" river" not in counts


@pytest.mark.cluster
def test_a_shard_that_cannot_be_read_is_told_in_one_sentence(manifest: Manifest) -> None:
    shard = Path(manifest.root) / "a.parquet"
    content = bytearray(shard.read_bytes())
    content[4:2000] = bytes(1996)
    shard.write_bytes(content)

    with pytest.raises(DataError, match=r"a\.parquet cannot be read at rows .* Fetch it again"):
        count_words(manifest, cut(manifest, 100_000), SPLIT_PATTERN)
