from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from nanoray.data.batches import Share, step_rows
from nanoray.data.blocks import (
    MIN_ROWS_PER_BLOCK,
    PADDING_POSITION,
    Block,
    DataOrderError,
    Layout,
    check_order,
    layout_for,
    ledger_hash,
    plain_blocks,
    row_digest,
    unit_block,
)
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan
from nanoray.text.tokenizer import Tokenizer
from tests.data.shards import sentences, write_row_groups, write_shard

LAYOUTS = [
    (rows, device_batch, workers)
    for rows in (1, 6, 30, 64, 96, 256)
    for device_batch in (1, 3, 8, 32)
    for workers in (1, 2, 3, 7, 32)
    if workers <= rows
]


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    """Few units, some of them too short for a single row, so that epochs and gaps come soon."""
    groups = [[text] for text in sentences(9, 1, longest=5)] + [sentences(5, 2)] * 2
    write_row_groups(tmp_path / "a.parquet", groups)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(tmp_path), "text"), unit_bytes=400)
    return DataPlan(manifest, Tokenizer([]), max_seq_len=48, packing="bestfit", seed=0)


def planned_rows(plan: DataPlan, start: Cursor, num_rows: int) -> list[tuple[int, int, int, int]]:
    """List (position, row, num_rows, digest) of the rows that follow a cursor, unit by unit."""
    found: list[tuple[int, int, int, int]] = []
    position, first = start.position, start.row
    while len(found) < num_rows:
        rows = plan.pack(position).rows
        found += [(position, i, len(rows), row_digest(rows[i])) for i in range(first, len(rows))]
        position, first = position + 1, 0
    return found[:num_rows]


def record_of(plan: DataPlan, start: Cursor, num_rows: int) -> npt.NDArray[np.int64]:
    return np.array(planned_rows(plan, start, num_rows), np.int64)


def is_empty_in(plan: DataPlan, position: int) -> bool:
    return not len(plan.pack(position).rows)


def most_rows_of_a_rank(rows: int, block: int, workers: int) -> int:
    counts = np.bincount(np.arange(rows // block) % workers, minlength=workers)
    return int(counts.max()) * block


def blocks_of(plan: DataPlan, layout: Layout, start: Cursor, share: Share) -> Iterator[Block]:
    """Give the blocks that a rank of a stream gets, padding in front, as Ray Data would."""
    padding = unit_block(np.zeros((layout.rows_per_block, 49), np.int32), PADDING_POSITION, 0)
    stream = chain([padding] * share.padding_blocks, plain_blocks(plan, layout, start))
    for index, block in enumerate(stream):
        if index % share.world_size == share.rank:
            yield block


@pytest.mark.parametrize(("rows", "device_batch", "workers"), LAYOUTS)
def test_a_layout_cuts_every_step_into_whole_blocks_for_all(rows, device_batch, workers):
    layout = layout_for(rows, device_batch, workers)

    b = layout.rows_per_block
    assert layout.blocks_per_step * b == rows
    assert layout.blocks_per_step >= workers
    assert b % device_batch == 0 or device_batch % b == 0


@pytest.mark.parametrize(("rows", "device_batch", "workers"), LAYOUTS)
def test_no_rank_has_over_a_tenth_more_rows_than_with_fairer_blocks(rows, device_batch, workers):
    chosen = layout_for(rows, device_batch, workers).rows_per_block

    # Blocks of fewer rows than pay for themselves are no alternative to larger ones.
    least = min(chosen, MIN_ROWS_PER_BLOCK)
    others = [
        b
        for b in range(least, rows // workers + 1)
        if rows % b == 0 and (b % device_batch == 0 or device_batch % b == 0)
    ]
    fairest = min(most_rows_of_a_rank(rows, b, workers) for b in others)
    assert most_rows_of_a_rank(rows, chosen, workers) <= 1.1 * fairest


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_workers_that_divide_the_batch_get_equal_shares(workers):
    layout = layout_for(256, 32, workers)

    shares = [len(layout.blocks_of_rank(0, rank, workers)) for rank in range(workers)]

    assert set(shares) == {256 // workers // layout.rows_per_block}


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("first_block", [0, 1, 6, 1000])
def test_each_block_of_a_step_belongs_to_one_rank(workers, first_block):
    layout = Layout(rows_per_step=56, rows_per_block=8)

    shares = [layout.blocks_of_rank(first_block, rank, workers) for rank in range(workers)]

    assert sorted(chain.from_iterable(shares)) == list(range(7))
    assert min(map(len, shares)) >= 1
    assert all(share == sorted(share) for share in shares)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("start_step", [0, 1, 2, 7, 100])
def test_a_resumed_run_gives_each_block_to_the_rank_of_the_undisturbed_run(workers, start_step):
    layout = Layout(rows_per_step=56, rows_per_block=8)

    padding = layout.padding_blocks(start_step, (workers, workers))

    for step in range(start_step, start_step + 5):
        undisturbed, resumed = step * 7, padding + (step - start_step) * 7
        for rank in range(workers):
            owned = layout.blocks_of_rank(undisturbed, rank, workers)
            assert layout.blocks_of_rank(resumed, rank, workers) == owned
    assert padding < workers


def test_a_range_of_workers_has_no_order_to_keep_and_no_padding():
    layout = Layout(rows_per_step=56, rows_per_block=8)

    assert layout.padding_blocks(3, (2, 4)) == 0


@pytest.mark.parametrize("rows_per_block", [1, 4, 7])
@pytest.mark.parametrize("start", [Cursor(), Cursor(3, 0), Cursor(9, 1)])
def test_plain_blocks_are_the_rows_of_the_plan_from_the_cursor_on(plan, rows_per_block, start):
    layout = Layout(rows_per_step=28, rows_per_block=rows_per_block)

    blocks = list(islice(plain_blocks(plan, layout, start), 84 // rows_per_block))

    assert {len(block["tokens"]) for block in blocks} == {rows_per_block}
    fields = ("position", "row", "num_rows")
    columns = [np.concatenate([block[name] for block in blocks]).tolist() for name in fields]
    digests = [row_digest(row) for block in blocks for row in block["tokens"]]
    assert list(zip(*columns, digests, strict=True)) == planned_rows(plan, start, 84)


def test_rows_of_a_unit_know_their_place():
    rows = np.arange(20, dtype=np.int32).reshape(5, 4)

    block = unit_block(rows, position=9, first=2)

    assert np.array_equal(block["tokens"], rows[2:])
    assert block["position"].tolist() == [9, 9, 9]
    assert block["row"].tolist() == [2, 3, 4]
    assert block["num_rows"].tolist() == [5, 5, 5]


def test_the_order_of_the_plan_is_accepted_over_empty_units_and_epochs(plan):
    cursor, seen = Cursor(), []

    for _ in range(40):
        record = record_of(plan, cursor, 6)
        cursor = check_order(record, cursor, lambda position: is_empty_in(plan, position))
        seen += record[:, :2].tolist()

    assert seen == [list(row[:2]) for row in planned_rows(plan, Cursor(), 240)]
    assert cursor.position > 2 * len(plan.units), "no epoch ended"
    assert any(is_empty_in(plan, position) for position in range(cursor.position))


def test_the_cursor_stands_at_the_row_that_comes_next(plan):
    rows = planned_rows(plan, Cursor(), 60)

    for count in range(1, 60):
        record = np.array(rows[:count], np.int64)
        cursor = check_order(record, Cursor(), lambda position: is_empty_in(plan, position))

        # It may stand at an empty unit: the rows that follow from there are the same.
        assert planned_rows(plan, cursor, 1) == [rows[count]]


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("repeated", [0, 1, 1, 2, 3]),
        ("skipped", [0, 1, 3, 4, 5]),
        ("swapped", [0, 2, 1, 3, 4]),
        ("late", [1, 2, 3, 4, 5]),
        ("turned around", [4, 3, 2, 1, 0]),
    ],
)
@pytest.mark.parametrize("start", [Cursor(), Cursor(4, 0), Cursor(9, 1)])
def test_rows_out_of_order_are_refused(plan, start, fault, order):
    record = record_of(plan, start, 6)[order]

    with pytest.raises(DataOrderError, match="was due"):
        check_order(record, start, lambda position: is_empty_in(plan, position))


def test_a_unit_with_rows_may_not_be_passed_over(plan):
    [position] = [p for p in range(20) if not is_empty_in(plan, p)][:1]
    record = record_of(plan, Cursor(position + 1), 4)

    with pytest.raises(DataOrderError, match=f"row 0 of unit {position} was due"):
        check_order(record, Cursor(position), lambda p: is_empty_in(plan, p))


def test_a_row_that_no_rank_delivered_is_refused(plan):
    record = record_of(plan, Cursor(), 6)
    record[3] = 0

    with pytest.raises(DataOrderError):
        check_order(record, Cursor(), lambda position: is_empty_in(plan, position))


def test_the_ledger_hash_tells_rows_and_their_order_apart(plan):
    record = record_of(plan, Cursor(), 6)
    other = record.copy()
    other[2, 3] += 1

    hashes = {ledger_hash(record), ledger_hash(record[::-1]), ledger_hash(other)}

    assert len(hashes) == 3


def test_the_digest_of_a_row_is_that_of_its_tokens_alone():
    row = np.arange(33, dtype=np.int32)
    strided = np.repeat(row, 2)[::2]
    changed = np.where(row == 7, 8, row).astype(np.int32)

    assert row_digest(strided) == row_digest(row)
    assert row_digest(changed) != row_digest(row)


@pytest.mark.parametrize(("workers", "rows_per_block"), [(1, 6), (1, 2), (2, 3), (3, 2), (4, 1)])
def test_the_ledger_does_not_depend_on_workers_or_blocks(plan, workers, rows_per_block):
    layout = Layout(rows_per_step=12, rows_per_block=rows_per_block)
    start = Cursor(2, 0)
    padding = layout.padding_blocks(3, (workers, workers))
    shares = [Share(rank, workers, padding) for rank in range(workers)]
    streams = [
        step_rows(blocks_of(plan, layout, start, share), layout, share, pin=False)
        for share in shares
    ]

    ledger = []
    for _ in range(5):
        parts = [next(stream) for stream in streams]
        ledger.append(ledger_hash(np.sum([part.record.numpy() for part in parts], axis=0)))
    for stream in streams:
        stream.close()

    expected = record_of(plan, start, 60).reshape(5, 12, 4)
    assert ledger == [ledger_hash(record) for record in expected]
