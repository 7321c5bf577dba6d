"""Rows of a data plan, streamed by Ray Data to the workers of a stage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from ray.data import DataIterator, Dataset

from nanoray.cluster.connection import Resources
from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import Layout
from nanoray.data.feed import Actor, StreamStart, blocks_of, stream
from nanoray.data.plan import Cursor, DataPlan
from nanoray.text.tokenizer import Tokenizer
from nanoray.train.state import TrainState
from nanoray.train.validation import BitsPerByte
from nanoray.train.world import World

SPARE_STEPS = 8
"""How far several readers reach beyond the last step, and not only one."""


@dataclass(frozen=True)
class PlanFeed:
    """What a stage over a data plan reads, and what it is validated on."""

    plan: DataPlan
    layout: Layout
    resources: Resources
    bytes_per_token: float
    rows_per_unit: float
    validation_rows: int
    text_start: int | None
    """As in `StepConfig`."""
    pacer: Actor

    @property
    def tokenizer(self) -> Tokenizer:
        """What the rows are made with."""
        return self.plan.tokenizer

    @property
    def hash(self) -> str:
        """Hash over all that decides the rows."""
        return self.plan.hash

    def begin(self, cursor: Cursor, *, step: int, num_steps: int) -> Dataset:
        """Give the stream of a group that starts after `step` steps, at a cursor."""
        ray.get(self.pacer.reset.remote(cursor.position, cursor.row))
        rows = (num_steps - step + SPARE_STEPS) * self.layout.rows_per_step
        start = StreamStart(
            cursor=cursor,
            padding_blocks=self.layout.padding_blocks(step, self.resources.num_workers),
            num_units=self.plan.num_units_for(rows, self.rows_per_unit, cursor.position),
            num_readers=self.resources.num_readers,
        )
        return stream(self.plan, self.layout, start, self.pacer)

    def open(
        self, world: World, shard: DataIterator, step: int
    ) -> Callable[[TrainState], Iterator[StepRows]]:
        """Begin to read this rank's rows of what follows `step` steps."""
        share = Share(
            rank=world.rank,
            world_size=world.world_size,
            padding_blocks=self.layout.padding_blocks(step, self.resources.num_workers),
        )
        pin = world.device.type == "cuda"
        blocks = blocks_of(shard, self.layout)
        rows = step_rows(blocks, self.layout, share, pin=pin, beat=world.beat)
        return lambda state: rows

    def validation(self, world: World, device_batch_size: int) -> BitsPerByte:
        """Give what the stage is measured by."""
        return BitsPerByte(
            self.plan.validation_rows(self.validation_rows),
            self.tokenizer.token_lengths,
            world,
            device_batch_size,
            self.text_start,
        )

    def is_empty(self, position: int) -> bool:
        """Say whether the unit at a position gives no row."""
        return not len(self.plan.pack(position).rows)

    def totals(self) -> dict[str, int]:
        """Give the sums over all units packed so far."""
        packed: dict[str, int] = ray.get(self.pacer.totals.remote())
        return packed
