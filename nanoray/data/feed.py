"""The data plan, executed by Ray Data on the CPUs of the cluster.

    positions -> read, tokenize, pack (a generator per task) -> blocks of exactly b rows -> block k
    to rank k % W

The read-ahead is bounded here, in the source: a task waits for its turn before it packs a unit.
Left to Ray Data's own limits, its scheduling loop spins and takes most of a core.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.data import DataIterator, Dataset, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.data.blocks import PADDING_POSITION, Block, Layout, unit_block
from nanoray.data.plan import Cursor, DataPlan
from nanoray.data.ray_data import data_context

UNITS_PER_TASK = 64
"""Consecutive units of one task at most: with one each, a plan of 100,000 units never starts."""
TASKS_PER_STREAM = 500
"""Short plans get shorter tasks, so that several CPUs work near the consumers."""
PIECE_BLOCKS = 16
"""Readers hand out their rows in pieces of this many blocks: Ray Data's loop turns ten times a
second while a reader waits, and cuts one piece into blocks per turn."""
READER_CPUS = 0
"""Logical CPUs of a reading task, which mostly waits for its turn; their number is bounded."""
STREAM_CPUS = 1
"""What the stream needs: Ray Data cuts blocks in tasks of one CPU, and takes whole CPUs only."""
JITTER_VARIABLE = "NANORAY_TEST_READ_JITTER_SECONDS"
"""For tests: each unit's reader sleeps a random time up to this, so that units end out of order."""


Actor = Any  # Any: Ray's handles have the methods of their class, with `.remote`, and no type


class Pacer:
    """Lets the readers run ahead of the consumers by a bounded number of rows, and no further.

    An async actor: tasks wait in `turn`, which costs nothing, until the consumers come near.
    """

    def __init__(self, window_rows: int, units_at_once: int) -> None:
        self.window_rows, self.units_at_once = window_rows, units_at_once
        self.rows: dict[int, int] = {}
        self.consumed = Cursor()
        self.num_units = self.num_rows = self.num_tokens = self.num_dropped = 0
        self.progress = asyncio.Condition()

    def rows_before(self, position: int) -> float:
        """Estimate the rows between the consumers and a unit; unread units count the mean."""
        mean = self.num_rows / self.num_units if self.num_units else 0.0
        ahead = range(self.consumed.position, position)
        return sum(self.rows.get(p, mean) for p in ahead) - self.consumed.row

    async def turn(self, position: int) -> None:
        """Return when the unit at `position` may be packed."""
        async with self.progress:
            await self.progress.wait_for(lambda: self.may_pack(position))

    def may_pack(self, position: int) -> bool:
        """Say whether a unit is near enough to the consumers."""
        near = position < self.consumed.position + self.units_at_once
        return near or self.rows_before(position) < self.window_rows

    async def reset(self, position: int, row: int) -> None:
        """Begin anew at a cursor, for a stream that starts there."""
        async with self.progress:
            self.consumed = Cursor(position, row)
            self.progress.notify_all()

    async def produced(
        self, position: int, num_rows: int, num_tokens: int, num_dropped: int
    ) -> None:
        """Note what a unit gave."""
        async with self.progress:
            self.rows[position] = num_rows
            self.num_units += 1
            self.num_rows += num_rows
            self.num_tokens += num_tokens
            self.num_dropped += num_dropped
            self.progress.notify_all()

    async def consume(self, position: int, row: int) -> None:
        """Note how far the consumers have come."""
        async with self.progress:
            self.consumed = max(self.consumed, Cursor(position, row))
            for old in [p for p in self.rows if p < self.consumed.position]:
                del self.rows[old]
            self.progress.notify_all()

    async def totals(self) -> dict[str, int]:
        """Give the sums over all units packed so far."""
        return {
            "units": self.num_units,
            "tokens": self.num_tokens,
            "dropped_tokens": self.num_dropped,
        }


@dataclass(frozen=True)
class Source:
    """What a reading task needs to know."""

    plan: "ray.ObjectRef[DataPlan]"
    start: Cursor
    padding_rows: int
    num_units: int
    """How many are shared out to tasks."""
    pacer: Actor

    def read(self, batch: dict[str, npt.NDArray[np.int64]]) -> Iterator[Block]:
        """Give the rows of the units that follow the start by the offsets in `batch["item"]`.

        The last task goes on beyond them for as long as rows are wanted: how many units a run needs
        is an estimate, and a stream must not end before the last step.
        """
        plan: DataPlan = ray.get(self.plan)
        offsets = batch["item"].tolist()
        beyond = count(self.num_units) if offsets[-1] == self.num_units - 1 else ()
        in_a_row = 0
        for offset in chain(offsets, beyond):
            if offset == 0 and self.padding_rows:
                padding = np.zeros((self.padding_rows, plan.max_seq_len + 1), np.int32)
                yield unit_block(padding, PADDING_POSITION, 0)
            position = self.start.position + offset
            ray.get(self.pacer.turn.remote(position))
            time.sleep(random.random() * float(os.environ.get(JITTER_VARIABLE, "0")))
            unit = plan.pack(position)
            self.pacer.produced.remote(position, len(unit.rows), unit.num_tokens, unit.num_dropped)
            first = self.start.row if offset == 0 else 0
            if first < len(unit.rows):
                yield unit_block(unit.rows, position, first)
            in_a_row = 0 if len(unit.rows) else in_a_row + 1
            if in_a_row > 2 * len(plan.units):  # more than an epoch: no unit has a row
                return


@dataclass(frozen=True)
class StreamStart:
    """Where a stream begins and how it is read."""

    cursor: Cursor
    """The first row wanted."""
    padding_blocks: int
    """From `Layout.padding_blocks`."""
    num_units: int
    """How many are shared out to the readers; one of them alone reads what lies beyond."""
    num_readers: int
    """How many units are read at a time."""


def window_rows(layout: Layout, most_workers: int) -> int:
    """Say how far the readers may be ahead: what ranks prefetch and the split holds, and more."""
    blocks_in_flight = 6 * most_workers + 2 * PIECE_BLOCKS
    return 3 * layout.rows_per_step + blocks_in_flight * layout.rows_per_block


def start_pacer(layout: Layout, most_workers: int, num_readers: int) -> Actor:
    """Start the pacer on this node: if that is lost, the driver is too.

    One that is killed comes back, and is reset with the next start of the group.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(Pacer)
    pacer = actor.options(num_cpus=0, scheduling_strategy=here, max_restarts=-1)
    started: Actor = pacer.remote(window_rows(layout, most_workers), num_readers)
    return started


def stream(plan: DataPlan, layout: Layout, start: StreamStart, pacer: Actor) -> Dataset:
    """Build the stream of blocks from a cursor on; the pacer must have been reset to it.

    It has no end, so that Ray Data has no last blocks to cut and to reassign.
    """
    per_task = min(UNITS_PER_TASK, max(1, start.num_units // TASKS_PER_STREAM))
    padding_rows = start.padding_blocks * layout.rows_per_block
    source = Source(ray.put(plan), start.cursor, padding_rows, start.num_units, pacer)
    context = data_context()
    context._max_num_blocks_in_streaming_gen_buffer = 64
    # A task hands out what it has when this much has gathered, and keeps at most as much back.
    context.target_max_block_size = (
        PIECE_BLOCKS * layout.rows_per_block * (4 * (plan.max_seq_len + 1) + 24)
    )
    # Blocks that exist already: each block of `ray.data.range` is a task of one CPU, and on a small
    # machine all of them would run before the first unit is read.
    offsets = ray.data.from_items(
        list(range(start.num_units)), override_num_blocks=-(-start.num_units // per_task)
    )
    read: Any = source.read  # Any: Ray's stubs know no batches of one kind
    rows = offsets.map_batches(
        read,
        batch_size=None,
        batch_format="numpy",
        num_cpus=READER_CPUS,
        compute=TaskPoolStrategy(size=start.num_readers),
    )
    return rows.repartition(target_num_rows_per_block=layout.rows_per_block, strict=True)


def blocks_of(shard: DataIterator, layout: Layout) -> Iterator[Block]:
    """Iterate over the blocks that Ray Data hands to this rank."""
    batches: Any = shard.iter_batches(  # Any: Ray's union of all batch formats
        batch_size=layout.rows_per_block, batch_format="numpy", prefetch_batches=2
    )
    yield from batches
