"""Blocks of rows: how a step is cut into them, who computes which, and the proof of their order.

NumPy only: the reading tasks of the cluster import this, and need no torch.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nanoray.data.plan import Cursor, DataPlan

Block = dict[str, npt.NDArray[np.generic]]
"""Consecutive rows: tokens (b, T+1) int32, and position, row, num_rows (b,) int64 for each."""

PADDING_POSITION = -1
"""Position of rows that only shift the blocks to the right ranks, at the beginning of a stream."""

RECORD_FIELDS = 4
"""Position, row, num_rows and digest of each row."""

MIN_ROWS_PER_BLOCK = 16
"""Ray Data's cost is per block (4 to 12 ms): smaller ones are used only where workers need them."""


class DataOrderError(RuntimeError):
    """The stream did not go on at the cursor: rows were repeated, skipped or mixed up."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a step are cut into blocks, and which rank computes which block."""

    rows_per_step: int
    rows_per_block: int

    @property
    def blocks_per_step(self) -> int:
        """Blocks in a step."""
        return self.rows_per_step // self.rows_per_block

    def most_rows(self, num_workers: int) -> int:
        """Give the rows of a step on the rank that has most of them, for which all others wait."""
        return -(-self.blocks_per_step // num_workers) * self.rows_per_block

    def blocks_of_rank(self, first_block: int, rank: int, world_size: int) -> list[int]:
        """Give the blocks of a step, counted within it, that a rank computes.

        Args:
            first_block: the step's first block, counted from the beginning of the stream.
            rank: which worker.
            world_size: how many workers share the stream: block k goes to rank k % world_size.
        """
        return [j for j in range(self.blocks_per_step) if (first_block + j) % world_size == rank]

    def padding_blocks(self, start_step: int, num_workers: tuple[int, int]) -> int:
        """Say how many blocks to put before those of the step at which a stream starts.

        With them, a resumed run shares out its blocks as the undisturbed one does, and adds up its
        gradients in the same order. A range of workers has no such order to keep.
        """
        least, most = num_workers
        return start_step * self.blocks_per_step % most if least == most else 0


def layout_for(rows_per_step: int, device_batch_size: int, most_workers: int) -> Layout:
    """Choose the largest blocks with which no rank has over a tenth more rows than needed.

    Every step has at least one block for each rank, because a rank without one would never open its
    part of the stream and all would wait for it.
    """
    fitting = [
        b
        for b in range(1, rows_per_step + 1)
        if rows_per_step % b == 0
        and rows_per_step // b >= most_workers
        and (b % device_batch_size == 0 or device_batch_size % b == 0)
    ]
    roomy = [b for b in fitting if b >= MIN_ROWS_PER_BLOCK] or fitting
    most_rows = {b: Layout(rows_per_step, b).most_rows(most_workers) for b in roomy}
    fair = [b for b in roomy if most_rows[b] <= 1.1 * min(most_rows.values())]
    return Layout(rows_per_step, max(fair))


def unit_block(rows: npt.NDArray[np.int32], position: int, first: int) -> Block:
    """Give the rows of a unit from `first` on, each with its place in the plan."""
    count = len(rows) - first
    return {
        "tokens": rows[first:],
        "position": np.full(count, position, np.int64),
        "row": np.arange(first, len(rows), dtype=np.int64),
        "num_rows": np.full(count, len(rows), np.int64),
    }


def row_digest(row: npt.NDArray[np.generic]) -> int:
    """Hash the tokens of a row to a signed 64-bit number."""
    return int.from_bytes(
        hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little", signed=True
    )


def check_order(
    record: npt.NDArray[np.int64], cursor: Cursor, is_empty: Callable[[int], bool]
) -> Cursor:
    """Check that the rows of a step follow the cursor without a gap; gives the cursor after them.

    Args:
        record: (rows_per_step, RECORD_FIELDS), summed over all ranks.
        cursor: where the step must begin.
        is_empty: says whether the unit at a position has no row at all, and may be passed over.

    Raises:
        DataOrderError: a row is not the one that the plan has there.
    """
    for position, row, num_rows, _ in record.tolist():
        while cursor.position < position and cursor.row == 0 and is_empty(cursor.position):
            cursor = Cursor(cursor.position + 1)
        if Cursor(position, row) != cursor:
            raise DataOrderError(
                f"Row {row} of unit {position} came where row {cursor.row} of unit "
                f"{cursor.position} was due. The run goes on from the newest checkpoint."
            )
        cursor = Cursor(position, row + 1) if row + 1 < num_rows else Cursor(position + 1)
    return cursor


def ledger_hash(record: npt.NDArray[np.int64]) -> str:
    """Hash the rows of a step in their global order: the same for any number of workers."""
    return hashlib.blake2b(record[:, 3].astype("<i8").tobytes(), digest_size=16).hexdigest()


def plain_blocks(plan: DataPlan, layout: Layout, start: Cursor) -> Iterator[Block]:
    """Give all blocks from a cursor on in this very process, without Ray."""
    position, first = start.position, start.row
    held: list[Block] = []
    while True:
        rows = plan.pack(position).rows
        if first < len(rows):
            held.append(unit_block(rows, position, first))
        joined = (
            {name: np.concatenate([block[name] for block in held]) for name in held[0]}
            if held
            else {}
        )
        b = layout.rows_per_block
        whole = len(joined["row"]) // b * b if joined else 0
        for i in range(0, whole, b):
            yield {name: values[i : i + b] for name, values in joined.items()}
        held = [{name: values[whole:] for name, values in joined.items()}] if joined else []
        position, first = position + 1, 0
