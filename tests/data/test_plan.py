import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoray.config import DataError
from nanoray.data import plan as plan_module
from nanoray.data.manifest import UNIT_BYTES, Manifest, make_manifest
from nanoray.data.plan import DataPlan, Unit, read_documents, split_units
from nanoray.text.tokenizer import Tokenizer
from tests.data.shards import raw_strings, sentences, write_row_groups, write_shard
from tests.support import tiny_tokenizer

BYTES = Tokenizer([])
"""Every byte of a text is a token, so that tokens can be told without the tokenizer."""


def make_plan(manifest: Manifest, tokenizer: Tokenizer = BYTES, **changes: object) -> DataPlan:
    settings = {"max_seq_len": 32, "packing": "bestfit", "seed": 0, **changes}
    return DataPlan(manifest, tokenizer, **settings)  # type: ignore[arg-type]  # as named above


def random_groups(seed: int) -> list[list[str | None]]:
    """Draw row groups from a single document up to very many."""
    draw = np.random.default_rng(seed)
    texts = iter(sentences(3000, seed))
    sizes = draw.choice([1, 2, 5, 100, 400], 12)
    return [[next(texts) for _ in range(size)] for size in sizes]


def three_shards(folder: Path) -> Manifest:
    """Write shards of very different row groups; units are small, so that all cases occur."""
    for seed in range(3):
        write_row_groups(folder / f"shard_{seed}.parquet", random_groups(seed))
    return replace(make_manifest(str(folder), "text"), unit_bytes=2000)


def documents_in(manifest: Manifest, units: list[Unit]) -> list[str]:
    return [text for unit in units for text in read_documents(manifest, unit)]


def documents_of_shard(manifest: Manifest, shard: int) -> list[str]:
    path = f"{manifest.root}/{manifest.shards[shard].path}"
    return [text for text in pq.read_table(path)["text"].to_pylist() if text]


def test_every_document_is_in_exactly_one_unit_and_in_order(tmp_path):
    manifest = three_shards(tmp_path)

    training, validation = split_units(manifest)

    expected = documents_of_shard(manifest, 0) + documents_of_shard(manifest, 1)
    assert documents_in(manifest, training) == expected
    assert documents_in(manifest, validation) == documents_of_shard(manifest, 2)


def test_large_row_groups_are_split_and_small_ones_joined(tmp_path):
    groups = [["x" * 100] * 200, *[["y" * 100]] * 40, ["z" * 100] * 10]
    write_row_groups(tmp_path / "a.parquet", groups)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(tmp_path), "text"), unit_bytes=4000)

    units, _ = split_units(manifest)

    texts = [documents_in(manifest, [unit]) for unit in units]
    num_bytes = [sum(map(len, documents)) for documents in texts]
    assert all(size <= manifest.unit_bytes for size in num_bytes)
    # A unit of less than a quarter is there only where a shard ends. What counts is the footer's
    # size, which is more than the text: each row group has a header with its least and largest.
    assert sum(unit.num_bytes < manifest.unit_bytes / 4 for unit in units) <= 1
    assert sum(num_bytes) == 250 * 100


def test_units_are_at_most_four_megabytes_of_real_text(tmp_path):
    draw = np.random.default_rng(0)
    texts = [draw.bytes(50_000).hex() for _ in range(180)]
    write_shard(tmp_path / "a.parquet", texts, row_group_size=150)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = make_manifest(str(tmp_path), "text")

    units, _ = split_units(manifest)

    sizes = [sum(map(len, documents_in(manifest, [unit]))) for unit in units]
    assert sum(sizes) == 180 * 100_000
    assert max(sizes) <= UNIT_BYTES
    assert min(sizes) > UNIT_BYTES / 2, "units are needlessly small"


def test_an_epoch_is_a_permutation_and_the_next_one_another(tmp_path):
    plan = make_plan(three_shards(tmp_path))
    count = len(plan.units)

    epochs = [[plan.unit(epoch * count + i) for i in range(count)] for epoch in range(3)]

    assert count > 20
    for epoch in epochs:
        assert Counter(epoch) == Counter(plan.units)
        assert epoch != plan.units
    assert epochs[0] != epochs[1] != epochs[2]


def test_positions_run_on_and_can_be_asked_for_in_any_order(tmp_path):
    manifest = three_shards(tmp_path)
    count = len(make_plan(manifest).units)
    positions = [3 * count + 1, 0, count, count - 1, 10**9, 0]

    answers = [make_plan(manifest).unit(position) for position in positions]

    plan = make_plan(manifest)
    assert [plan.unit(position) for position in reversed(positions)] == answers[::-1]


def test_another_seed_gives_another_order_of_the_same_units(tmp_path):
    manifest = three_shards(tmp_path)
    first, second = make_plan(manifest, seed=1), make_plan(manifest, seed=2)

    orders = [[plan.unit(i) for i in range(len(plan.units))] for plan in (first, second)]

    assert orders[0] != orders[1]
    assert Counter(orders[0]) == Counter(orders[1])


def test_the_validation_shard_is_never_trained_on(tmp_path):
    manifest = three_shards(tmp_path)
    plan = make_plan(manifest)

    seen = {plan.unit(i).shard for i in range(3 * len(plan.units))}

    assert seen == {0, 1}
    assert {unit.shard for unit in plan.validation_units} == {2}


def test_of_a_single_file_the_last_units_are_for_validation(tmp_path):
    write_shard(tmp_path / "a.parquet", sentences(500), row_group_size=50)
    manifest = make_manifest(str(tmp_path), "text")

    training, validation = split_units(manifest)

    documents = documents_of_shard(manifest, 0)
    held_out = documents_in(manifest, validation)
    assert documents_in(manifest, training) + held_out == documents
    assert 0 < len(held_out) < len(documents) / 10


def test_validation_rows_come_from_the_beginning_of_the_held_out_part(tmp_path):
    manifest = three_shards(tmp_path)
    plan = make_plan(manifest)

    rows = plan.validation_rows(50)

    every = np.concatenate([plan.pack_unit(unit).rows for unit in plan.validation_units])
    assert rows.shape == (50, plan.max_seq_len + 1)
    assert np.array_equal(rows, every[:50])
    assert len(plan.validation_rows(10**6)) == len(every)


@pytest.mark.parametrize("packing", ["bestfit", "flat"])
def test_the_tokens_of_a_unit_are_those_of_its_documents(tmp_path, packing):
    manifest = three_shards(tmp_path)
    plan = make_plan(manifest, packing=packing)
    position = 5

    packed = plan.pack(position)

    documents = read_documents(manifest, plan.unit(position))
    assert packed.num_tokens == sum(1 + len(text.encode()) for text in documents)
    expected = Counter(token for text in documents for token in text.encode())
    rows = packed.rows if packing == "bestfit" else packed.rows[:, 1:]
    found = Counter(rows[rows != BYTES.bos_id].tolist())
    assert not found - expected, "tokens that are in no document"
    assert (expected - found).total() <= packed.num_dropped < plan.max_seq_len + 1


def test_packing_is_a_pure_function_of_the_unit(tmp_path):
    manifest = three_shards(tmp_path)

    first, second = (make_plan(manifest, tiny_tokenizer()).pack(7) for _ in range(2))

    assert len(first.rows) > 1
    assert np.array_equal(first.rows, second.rows)


def test_a_plan_that_travelled_gives_the_same_rows(tmp_path):
    plan = make_plan(three_shards(tmp_path), tiny_tokenizer(), packing="flat", seed=3)

    parcel = pickle.dumps(plan)

    arrived = pickle.loads(parcel)
    assert arrived.hash == plan.hash
    for position in (0, 4, len(plan.units) + 1):
        assert np.array_equal(arrived.pack(position).rows, plan.pack(position).rows)
    # The list of units is left behind and made anew: of many shards it is long.
    assert len(parcel) < len(pickle.dumps([plan, plan.units]))


def test_the_hash_is_that_of_all_that_decides_the_rows(tmp_path):
    manifest = three_shards(tmp_path)
    plan = make_plan(manifest)

    others = [
        make_plan(manifest, seed=1),
        make_plan(manifest, packing="flat"),
        make_plan(manifest, max_seq_len=33),
        make_plan(manifest, tiny_tokenizer()),
        make_plan(replace(manifest, unit_bytes=2001)),
        make_plan(replace(manifest, validation_shard=manifest.shards[0].path)),
    ]

    hashes = [plan.hash, *(other.hash for other in others)]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_is_the_same_wherever_the_data_are(tmp_path):
    plan = make_plan(three_shards(tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "there")

    moved = make_plan(replace(make_manifest(str(tmp_path / "there"), "text"), unit_bytes=2000))

    assert moved.hash == plan.hash
    assert np.array_equal(moved.pack(3).rows, plan.pack(3).rows)


def test_empty_documents_and_nulls_are_left_out(tmp_path):
    write_shard(tmp_path / "a.parquet", ["one", "", None, "two", "", None, None, "three"])
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = make_manifest(str(tmp_path), "text")

    training, _ = split_units(manifest)

    assert documents_in(manifest, training) == ["one", "two", "three"]


def test_a_unit_without_any_text_gives_no_row(tmp_path):
    write_shard(tmp_path / "a.parquet", ["", None, None, ""])
    write_shard(tmp_path / "b.parquet", ["validation"])
    plan = make_plan(make_manifest(str(tmp_path), "text"))

    packed = plan.pack(0)

    assert packed.rows.shape == (0, 33)
    assert packed.num_tokens == packed.num_dropped == 0


def test_a_document_of_ten_megabytes_stays_whole(tmp_path):
    document = "0123456789" * 1_000_000
    write_shard(tmp_path / "a.parquet", ["short"] * 8 + [document] + ["short"] * 8)
    write_shard(tmp_path / "b.parquet", ["validation"])
    plan = make_plan(make_manifest(str(tmp_path), "text"), max_seq_len=2048)
    [unit] = [unit for unit in plan.units if unit.start <= 8 < unit.end]

    packed = plan.pack_unit(unit)

    assert packed.num_tokens > len(document)
    digits = (packed.rows >= ord("0")) & (packed.rows <= ord("9"))
    assert digits.sum() > len(document) - 2049


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_bytes_that_are_no_utf8_become_replacement_characters(tmp_path, kind):
    values = raw_strings([b"good", b"bad \xff\xfe bytes", b"cut \xe2\x82", "fine é".encode()])
    column = values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = make_manifest(str(tmp_path), "text")

    training, _ = split_units(manifest)

    expected = ["good", "bad \ufffd\ufffd bytes", "cut \ufffd", "fine é"]
    assert documents_in(manifest, training) == expected


@pytest.mark.parametrize(
    "kind",
    [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_text_reads_the_same_however_arrow_keeps_it(tmp_path, kind):
    texts = sentences(50)
    table = pa.table({"text": pa.array(texts).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(tmp_path), "text"), unit_bytes=500)

    training, _ = split_units(manifest)

    assert documents_in(manifest, training) == texts


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_a_damaged_page_is_told_with_the_name_of_its_file(tmp_path, compression):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": sentences(200)}), path, compression=compression)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = make_manifest(str(tmp_path), "text")
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(b"\x5a" * 300)

    with pytest.raises(DataError, match=r"a\.parquet cannot be read at rows 0 to 200") as error:
        documents_in(manifest, split_units(manifest)[0])

    assert "Fetch it again" in str(error.value)


def test_a_shard_that_was_lost_since_is_named(tmp_path):
    plan = make_plan(three_shards(tmp_path))
    os.remove(tmp_path / "shard_0.parquet")
    unit = next(unit for unit in plan.units if unit.shard == 0)

    with pytest.raises(DataError, match=r"shard_0\.parquet is gone\. Restore it"):
        plan.pack_unit(unit)


CORPORA: dict[str, Callable[[Path], Manifest]] = {
    "three shards": three_shards,
    "most units shorter than a row": lambda folder: one_document_each(
        folder, ["short words"] * 70 + ["many words here " * 40] * 10
    ),
    "some in a language with other tokens": lambda folder: one_document_each(
        folder, ["few words " * 300] * 30 + ["\u6f22\u5b57" * 400] * 10
    ),
}


def one_document_each(folder: Path, texts: list[str]) -> Manifest:
    """Write shards of a single document."""
    for number, text in enumerate(texts):
        write_row_groups(folder / f"shard_{number:02d}.parquet", [[text]])
    return make_manifest(str(folder), "text")


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("packing", ["bestfit", "flat"])
@pytest.mark.parametrize("num_rows", [1, 100, 5000])
def test_the_estimate_of_units_never_falls_short_of_the_rows(tmp_path, corpus, packing, num_rows):
    plan = make_plan(CORPORA[corpus](tmp_path), tiny_tokenizer(), packing=packing, max_seq_len=64)

    num_units = plan.num_units_for(num_rows, plan.sample_rows_per_unit())

    rows_of_unit = {unit: len(plan.pack_unit(unit).rows) for unit in plan.units}
    assert sum(rows_of_unit[plan.unit(i)] for i in range(num_units)) >= num_rows


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, dict[Unit, int]]:
    """1,000 units, of which 15 % are 13 times as large as the others, and the rows of each."""
    folder = tmp_path_factory.mktemp("uneven")
    sizes = np.random.default_rng(0).permutation([4000] * 150 + [300] * 850)
    # A row group is a unit: a single document cannot be cut, and two are too large to be joined.
    write_row_groups(folder / "a.parquet", [["some words of it " * (n // 17)] for n in sizes])
    write_shard(folder / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(folder), "text"), unit_bytes=1200)
    plan = make_plan(manifest, tiny_tokenizer(), max_seq_len=16)
    assert len(plan.units) == 1000
    return manifest, {unit: len(plan.pack_unit(unit).rows) for unit in plan.units}


@pytest.mark.parametrize("epochs", [3, 10])
def test_the_estimate_does_not_fall_short_where_units_are_uneven(uneven, epochs, monkeypatch):
    monkeypatch.setattr(plan_module, "SAMPLE_BYTES", 4194)  # as 4 MiB are to units of 4 MB
    manifest, rows_of_unit = uneven
    num_rows, first = epochs * sum(rows_of_unit.values()), 1234
    found = []

    for seed in range(30):
        plan = make_plan(manifest, tiny_tokenizer(), max_seq_len=16, seed=seed)
        num_units = plan.num_units_for(num_rows, plan.sample_rows_per_unit(), first)
        found.append(sum(rows_of_unit[plan.unit(first + i)] for i in range(num_units)) / num_rows)

    assert min(found) > 1.5
    assert max(found) < 3  # a stream far too long would be slow to start
