"""Blocks in, steps out: each rank's share of every step, one step ahead of the training loop."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from nanoray.data.blocks import (
    PADDING_POSITION,
    RECORD_FIELDS,
    Block,
    DataOrderError,
    Layout,
    row_digest,
)
from nanoray.data.plan import WAITING_FOR_DATA
from nanoray.text.chat import IGNORE_INDEX

SHORTEST = 64
"""Least length of rows whose lengths differ from step to step; a power of two."""
BEAT_SECONDS = 1.0
"""How often a rank says that it waits for its data."""


@dataclass(frozen=True)
class Batch:
    """What a forward pass is given; each tensor is (B, T)."""

    inputs: Tensor
    """int64."""
    targets: Tensor
    """int64; IGNORE_INDEX where there is no loss."""
    texts: Tensor | None = None
    """int64: the number of each token's text in its row, where texts do not see each other."""
    factors: Tensor | None = None
    """fp32: what each target's loss is multiplied by."""
    old_logprobs: Tensor | None = None
    """fp32: each target's log-probability under the weights that drew it, where those are older."""
    teaches: bool = True
    """False where all factors are 0: nothing comes of a forward and a backward pass."""


@dataclass(frozen=True)
class StepRows:
    """What one rank computes in one step."""

    rows: Tensor
    """(n, T+1) int32, on the CPU, pinned where the device is a GPU."""
    record: Tensor
    """(rows_per_step, RECORD_FIELDS) int64; this rank's rows at their places, 0 elsewhere."""
    wait_seconds: float
    """How long the rank waited for them."""
    factors: Tensor | None = None
    """(n, T), as in `Batch`."""
    old_logprobs: Tensor | None = None
    """(n, T), as in `Batch`."""
    means: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Name -> sum and count of what is told of the step's rows; all ranks have the same names."""

    def microbatches(
        self, device_batch_size: int, device: torch.device, text_start: int | None = None
    ) -> Iterator[Batch]:
        """Cut the rows into batches of at most `device_batch_size` on the device.

        With `text_start`, the id with which each text begins, texts of a row are told apart. Rows
        with factors end soon after the last target of their batch: what stands behind it has no
        part in any loss.
        """
        for start in range(0, len(self.rows), device_batch_size):
            part = slice(start, start + device_batch_size)
            rows, factors = self.rows[part], self.factors
            if factors is None:
                yield batch_of(rows.to(device, non_blocking=True), text_start)
                continue
            T = columns_needed(rows)
            batch = batch_of(rows[:, : T + 1].to(device, non_blocking=True), text_start)
            old = None if self.old_logprobs is None else self.old_logprobs[part, :T].to(device)
            yield replace(
                batch,
                factors=factors[part, :T].to(device),
                old_logprobs=old,
                teaches=bool(factors[part].any()),
            )


def columns_needed(rows: Tensor) -> int:
    """Give how many inputs of rows, (B, T+1), are followed by a target: `padded_length` of it."""
    [targets] = (rows[:, 1:] >= 0).any(0).nonzero(as_tuple=True)
    return min(padded_length(int(targets[-1]) + 1 if len(targets) else 1), rows.size(1) - 1)


def padded_length(length: int) -> int:
    """Round up to SHORTEST, or twice, four times, ... as much: each shape is compiled."""
    return max(SHORTEST, 1 << (length - 1).bit_length())


def batch_of(rows: Tensor, text_start: int | None) -> Batch:
    """Shift rows, (B, T+1); those of their tokens that stand there as `~id` are no targets."""
    ids = torch.where(rows < 0, ~rows, rows).long()
    targets = torch.where(rows < 0, IGNORE_INDEX, ids)[:, 1:]
    inputs = ids[:, :-1]
    texts = None if text_start is None else (inputs == text_start).cumsum(1)
    return Batch(inputs, targets, texts)


@dataclass(frozen=True)
class Share:
    """Which blocks of a stream come to this process."""

    rank: int = 0
    world_size: int = 1
    padding_blocks: int = 0
    """Blocks of padding with which the stream begins."""


def step_rows(
    blocks: Iterator[Block],
    layout: Layout,
    share: Share,
    *,
    pin: bool,
    beat: Callable[[str], None] = lambda doing: None,
) -> Generator[StepRows, None, None]:
    """Collect this rank's blocks of each step, in a thread that is one step ahead of the training.

    The thread starts with this call, so that a stream is opened while a checkpoint is read.

    Args:
        blocks: those of this rank, in order.
        layout: how steps are cut into blocks.
        share: which of them come to this rank.
        pin: put the rows into page-locked memory, for a GPU.
        beat: called again and again while rows that were asked for do not come.

    Raises:
        DataOrderError: when rows are asked for: the stream ended, or a block has a wrong size.
    """
    ready: queue.Queue[StepRows | BaseException | None] = queue.Queue(maxsize=1)
    done = threading.Event()
    device = torch.cuda.current_device() if pin else None

    def hand_over(item: StepRows | BaseException | None) -> None:
        while not done.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def collect() -> None:
        try:
            if device is not None:  # a thread begins with the first GPU, which is another rank's
                torch.cuda.set_device(device)
            for rows in _collect(blocks, layout, share, pin):
                hand_over(rows)
                if done.is_set():
                    return
            hand_over(None)
        except BaseException as error:  # handed to the training loop, which raises it
            hand_over(error)

    threading.Thread(target=collect, daemon=True, name="step-rows").start()
    rows = _handed_over(ready, done, beat)
    weakref.finalize(rows, done.set)  # of one that was never asked for a row, `finally` is not run
    return rows


def _handed_over(
    ready: "queue.Queue[StepRows | BaseException | None]",
    done: threading.Event,
    beat: Callable[[str], None],
) -> Generator[StepRows, None, None]:
    """Give what comes through the queue, with the time that was waited for it."""
    try:
        while True:
            began = time.perf_counter()
            item = _next_item(ready, beat)
            if isinstance(item, BaseException):
                raise item
            if item is None:
                raise DataOrderError("The stream of training data ended before the last step.")
            yield replace(item, wait_seconds=time.perf_counter() - began)
    finally:
        done.set()


def _next_item(
    ready: "queue.Queue[StepRows | BaseException | None]", beat: Callable[[str], None]
) -> StepRows | BaseException | None:
    while True:
        try:
            return ready.get(timeout=BEAT_SECONDS)
        except queue.Empty:
            beat(WAITING_FOR_DATA)


def _collect(
    blocks: Iterator[Block], layout: Layout, share: Share, pin: bool
) -> Iterator[StepRows]:
    """Give the rows of step after step, as they come."""
    real = (block for block in blocks if int(block["position"][0]) != PADDING_POSITION)
    b, first_block = layout.rows_per_block, share.padding_blocks
    while True:
        record = torch.zeros(layout.rows_per_step, RECORD_FIELDS, dtype=torch.int64)
        parts = []
        for j in layout.blocks_of_rank(first_block, share.rank, share.world_size):
            block = next(real, None)
            if block is None:
                return
            tokens = np.ascontiguousarray(block["tokens"])
            if len(tokens) != b:
                raise DataOrderError(f"A block of {len(tokens)} rows came where {b} were expected.")
            digests = [row_digest(row) for row in tokens]
            place = np.stack(
                [block["position"], block["row"], block["num_rows"], np.array(digests)], 1
            )
            record[j * b : (j + 1) * b] = torch.from_numpy(place.astype(np.int64))
            parts.append(tokens)
        rows = torch.from_numpy(np.concatenate(parts))
        yield StepRows(rows.pin_memory() if pin else rows, record, 0.0)
        first_block += layout.blocks_per_step
