"""The stream of the plan on a real cluster, whose readers end their units out of order."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import ray
from ray.data import DataIterator, ExecutionOptions
from ray.train import DataConfig

from nanoray.data.blocks import PADDING_POSITION, Block, Layout, plain_blocks
from nanoray.data.feed import (
    JITTER_VARIABLE,
    TASKS_PER_STREAM,
    Actor,
    Pacer,
    StreamStart,
    blocks_of,
    start_pacer,
    stream,
    window_rows,
)
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan
from nanoray.text.tokenizer import Tokenizer
from tests.data.shards import sentences, write_shard
from tests.driver import connected
from tests.running import Cluster

LAYOUT = Layout(rows_per_step=12, rows_per_block=4)
READERS = 4
MID_UNIT = Cursor(3, 5)


@pytest.fixture(scope="module")
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster, **{JITTER_VARIABLE: "0.1"}):
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DataPlan:
    """Units of some twenty rows each, and a dozen of them in an epoch."""
    folder = tmp_path_factory.mktemp("text")
    write_shard(folder / "a.parquet", sentences(120))
    write_shard(folder / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(folder), "text"), unit_bytes=600)
    return DataPlan(manifest, Tokenizer([]), max_seq_len=24, packing="bestfit", seed=0)


async def turns(pacer: Pacer, positions: range) -> dict[int, "asyncio.Task[None]"]:
    """Ask for the turn of some units, and let all go ahead that may."""
    tasks = {p: asyncio.create_task(pacer.turn(p)) for p in positions}
    await let_run()
    return tasks


async def let_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def going_ahead(tasks: dict[int, "asyncio.Task[None]"]) -> list[int]:
    return [position for position, task in tasks.items() if task.done()]


async def read_units(pacer: Pacer, positions: range, num_rows: int) -> None:
    for position in positions:
        await pacer.produced(position, num_rows, num_tokens=100, num_dropped=1)


def test_readers_go_ahead_until_the_rows_before_them_fill_the_window():
    async def story() -> list[int]:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await read_units(pacer, range(3), num_rows=10)
        return going_ahead(await turns(pacer, range(3, 9)))

    # Before unit 3 there are 30 rows; before unit 4 there are 40, the unread one counted as a mean.
    assert asyncio.run(story()) == [3]


def test_as_many_units_as_there_are_readers_go_ahead_however_large_they_are():
    async def story() -> list[int]:
        pacer = Pacer(window_rows=35, units_at_once=4)
        await read_units(pacer, range(1), num_rows=1000)
        return going_ahead(await turns(pacer, range(9)))

    assert asyncio.run(story()) == [0, 1, 2, 3]


def test_waiting_readers_go_ahead_when_the_consumers_come_near():
    async def story() -> tuple[list[int], list[int]]:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await read_units(pacer, range(4), num_rows=10)
        waiting = await turns(pacer, range(4, 9))
        before = going_ahead(waiting)
        await pacer.consume(1, 7)
        await let_run()
        return before, going_ahead(waiting)

    # From row 7 of unit 1 there are 23 rows to unit 4, 33 to unit 5, and 43 to unit 6.
    assert asyncio.run(story()) == ([], [4, 5])


def test_units_that_turn_out_small_let_more_of_them_go_ahead():
    async def story() -> tuple[list[int], list[int]]:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await read_units(pacer, range(4), num_rows=10)
        waiting = await turns(pacer, range(5, 9))
        before = going_ahead(waiting)
        await read_units(pacer, range(4), num_rows=2)
        await let_run()
        return before, going_ahead(waiting)

    # The mean falls to 6 rows: 14 before unit 5, 20 before 6, 26 before 7, 32 before 8.
    assert asyncio.run(story()) == ([], [5, 6, 7, 8])


def test_news_that_come_late_do_not_take_the_consumers_back():
    async def story() -> Cursor:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await pacer.consume(5, 2)
        await pacer.consume(5, 1)
        await pacer.consume(4, 9)
        return pacer.consumed

    assert asyncio.run(story()) == Cursor(5, 2)


def test_a_reset_paces_a_stream_that_starts_further_back():
    async def story() -> list[int]:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await read_units(pacer, range(20), num_rows=10)
        await pacer.consume(20, 0)
        await pacer.reset(10, 5)
        return going_ahead(await turns(pacer, range(10, 20)))

    # Units 10 to 13 begin at -5, 5, 15 and 25 rows from row 5 of unit 10.
    assert asyncio.run(story()) == [10, 11, 12, 13]


def test_totals_are_sums_over_all_units_and_consumed_ones_are_forgotten_one_by_one():
    async def story() -> tuple[dict[str, int], list[int]]:
        pacer = Pacer(window_rows=35, units_at_once=1)
        await read_units(pacer, range(50), num_rows=10)
        await pacer.consume(48, 3)
        return await pacer.totals(), list(pacer.rows)

    totals, remembered = asyncio.run(story())

    assert totals == {"units": 50, "tokens": 5000, "dropped_tokens": 50}
    assert remembered == [48, 49]


def test_the_window_holds_what_all_ranks_prefetch():
    layout = Layout(rows_per_step=96, rows_per_block=16)

    windows = [window_rows(layout, most_workers) for most_workers in (1, 8)]

    # Two batches that each rank fetches ahead, a step that it collects, and the step it computes.
    assert all(w > 2 * 96 + 2 * 16 * n for w, n in zip(windows, (1, 8), strict=True))
    assert windows[0] < windows[1]


def take_blocks(shard: DataIterator, pacer: Actor, rank: int, num_blocks: int) -> list[Block]:
    """Take blocks as a training worker does; rank 0 tells the readers how far it has come."""
    taken = []
    for block in islice(blocks_of(shard, LAYOUT), num_blocks):
        taken.append({name: values.copy() for name, values in block.items()})
        if rank == 0:
            pacer.consume.remote(int(block["position"][-1]), int(block["row"][-1]))
    return taken


@dataclass
class Streamed:
    """A stream that is open: one part of it per rank, and who paces its readers."""

    shards: list[DataIterator]
    pacer: Actor

    def blocks(self, num_blocks: int) -> list[list[Block]]:
        """Take blocks on all ranks at once.

        In processes of their own: Ray Data's threads would end this one, if they were still
        fetching ahead when it disconnects.
        """
        take: Any = ray.remote(take_blocks).options(num_cpus=0)
        taken: list[list[Block]] = ray.get(
            [take.remote(s, self.pacer, rank, num_blocks) for rank, s in enumerate(self.shards)]
        )
        return taken


def open_stream(plan: DataPlan, start: StreamStart, world_size: int, in_order: bool) -> Streamed:
    """Open a stream as Ray Train does for a group of workers."""
    pacer = start_pacer(LAYOUT, world_size, start.num_readers)
    ray.get(pacer.reset.remote(start.cursor.position, start.cursor.row))
    dataset = stream(plan, LAYOUT, start, pacer)
    config = DataConfig(
        execution_options=ExecutionOptions(preserve_order=in_order), enable_shard_locality=False
    )
    shards = config.configure({"train": dataset}, world_size, None, None)
    return Streamed([shard["train"] for shard in shards], pacer)


def expected_blocks(
    plan: DataPlan, start: StreamStart, world_size: int, num_blocks: int
) -> list[list[Block | None]]:
    """Say what each rank must get: block k of the stream is for rank k % W; None is padding."""
    real = plain_blocks(plan, LAYOUT, start.cursor)
    padding: list[Block | None] = [None] * start.padding_blocks
    whole = [*padding, *islice(real, num_blocks * world_size)]
    return [whole[rank::world_size][:num_blocks] for rank in range(world_size)]


def same(got: Block, wanted: Block | None) -> bool:
    """Say whether a block is the one that was due, tokens and places, or padding where it was."""
    if wanted is None:
        return set(got["position"].tolist()) == {PADDING_POSITION}
    return got.keys() == wanted.keys() and all(
        np.array_equal(got[name], wanted[name]) for name in wanted
    )


def all_same(got: list[list[Block]], wanted: list[list[Block | None]]) -> bool:
    return all(
        len(mine) == len(due) and all(map(same, mine, due))
        for mine, due in zip(got, wanted, strict=True)
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("cursor", "padding"), [(Cursor(), 0), (MID_UNIT, 2)])
def test_each_rank_gets_exactly_its_blocks_of_the_plan(
    ray_connection, plan, world_size, cursor, padding
):
    start = StreamStart(cursor, padding, num_units=40, num_readers=READERS)
    num_blocks = 36 // world_size

    got = open_stream(plan, start, world_size, in_order=True).blocks(num_blocks)

    assert all_same(got, expected_blocks(plan, start, world_size, num_blocks))


@pytest.mark.slow
@pytest.mark.cluster
def test_tasks_of_several_units_give_the_same_blocks(ray_connection, plan):
    start = StreamStart(MID_UNIT, 1, num_units=4 * TASKS_PER_STREAM, num_readers=READERS)

    got = open_stream(plan, start, 2, in_order=True).blocks(18)

    assert all_same(got, expected_blocks(plan, start, 2, 18))


@pytest.mark.cluster
def test_readers_really_end_out_of_order_so_that_order_has_to_be_asked_for(ray_connection, plan):
    start = StreamStart(Cursor(), 0, num_units=40, num_readers=READERS)

    expected = expected_blocks(plan, start, 1, 36)

    # On a busy machine they may end in order once, by luck.
    streams = (open_stream(plan, start, 1, in_order=False).blocks(36) for _ in range(5))
    assert any(not all_same(got, expected) for got in streams)


@pytest.mark.cluster
@pytest.mark.parametrize("world_size", [1, 3])
def test_the_stream_goes_on_beyond_the_units_that_were_thought_to_be_enough(
    ray_connection, plan, world_size
):
    start = StreamStart(MID_UNIT, 1, num_units=5, num_readers=READERS)
    rows = sum(len(plan.pack(MID_UNIT.position + offset).rows) for offset in range(5))
    num_blocks = 2 * rows // LAYOUT.rows_per_block // world_size

    got = open_stream(plan, start, world_size, in_order=True).blocks(num_blocks)

    assert all_same(got, expected_blocks(plan, start, world_size, num_blocks))


@pytest.mark.cluster
def test_a_stream_of_units_that_are_too_short_for_a_row_ends(ray_connection, tmp_path):
    write_shard(tmp_path / "a.parquet", ["short", "words"], row_group_size=1)
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = make_manifest(str(tmp_path), "text")
    short = DataPlan(manifest, Tokenizer([]), max_seq_len=100, packing="bestfit", seed=0)
    start = StreamStart(Cursor(), 0, num_units=5, num_readers=READERS)

    assert open_stream(short, start, 1, in_order=True).blocks(1) == [[]]


class Consumer:
    """A training worker that has taken one block and does not come back for the next."""

    def take_one(self, shard: DataIterator) -> None:
        self.blocks = blocks_of(shard, LAYOUT)
        next(self.blocks)


def units_read(pacer: Actor) -> int:
    totals: dict[str, int] = ray.get(pacer.totals.remote())
    return totals["units"]


def settled(pacer: Actor) -> int:
    """Give the number of units read once it has not grown for ten times what reading one takes."""
    count, since = units_read(pacer), time.monotonic()
    while time.monotonic() - since < 2.5:
        time.sleep(0.1)
        if units_read(pacer) != count:
            count, since = units_read(pacer), time.monotonic()
    return count


@pytest.mark.slow
@pytest.mark.cluster
def test_readers_stay_within_the_window_while_nobody_consumes(ray_connection, plan):
    start = StreamStart(Cursor(), 0, num_units=400, num_readers=READERS)
    streamed = open_stream(plan, start, 1, in_order=True)
    actor: Any = ray.remote(Consumer).options(num_cpus=0)
    consumer: Actor = actor.remote()
    ray.get(consumer.take_one.remote(streamed.shards[0]))

    ahead = settled(streamed.pacer)
    ray.get(streamed.pacer.consume.remote(ahead, 0))
    further = settled(streamed.pacer)

    rows = [len(plan.pack(position).rows) for position in range(ahead)]
    # Each reader may have begun a unit before it knew how many rows the others had found.
    assert sum(rows[:-READERS]) <= window_rows(LAYOUT, most_workers=1)
    assert further > ahead
