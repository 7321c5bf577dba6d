import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from nanoray.config import DataError
from nanoray.data import batches
from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import (
    PADDING_POSITION,
    Block,
    DataOrderError,
    Layout,
    check_order,
    plain_blocks,
    row_digest,
    unit_block,
)
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan
from nanoray.text.tokenizer import Tokenizer
from tests.data.shards import sentences, write_shard

Steps = Generator[StepRows, None, None]

LAYOUT = Layout(rows_per_step=12, rows_per_block=4)
FIRST = Cursor()
ALONE = Share()


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    write_shard(tmp_path / "a.parquet", sentences(60))
    write_shard(tmp_path / "b.parquet", ["validation"])
    manifest = replace(make_manifest(str(tmp_path), "text"), unit_bytes=600)
    return DataPlan(manifest, Tokenizer([]), max_seq_len=24, packing="bestfit", seed=0)


def steps_of(plan: DataPlan, start: Cursor = FIRST, share: Share = ALONE) -> Steps:
    """Give the steps of one rank whose stream begins at a cursor."""
    blocks = enumerate(plain_blocks(plan, LAYOUT, start), share.padding_blocks)
    mine = (block for k, block in blocks if k % share.world_size == share.rank)
    return step_rows(mine, LAYOUT, share, pin=False)


def steps_from(blocks: Iterator[Block], layout: Layout = LAYOUT) -> Steps:
    return step_rows(blocks, layout, ALONE, pin=False)


def rows_of(plan: DataPlan, num_rows: int) -> np.ndarray:
    units = [plan.pack(position).rows for position in range(num_rows)]
    return np.concatenate(units)[:num_rows]


def never_empty(position: int) -> bool:
    return False


def collecting_threads() -> int:
    return sum(thread.name == "step-rows" for thread in threading.enumerate())


def happens(what: Callable[[], bool]) -> bool:
    """Say whether something comes about within a few seconds."""
    deadline = time.monotonic() + 5
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    return what()


def test_one_rank_gets_all_rows_in_the_order_of_the_plan(plan):
    steps = steps_of(plan)

    got = [next(steps) for _ in range(6)]

    steps.close()
    rows = torch.cat([step.rows for step in got])
    assert rows.dtype == torch.int32
    assert np.array_equal(rows.numpy(), rows_of(plan, 72))


def test_the_record_says_of_each_row_where_it_stands_in_the_plan(plan):
    steps = steps_of(plan)

    step = next(steps)

    steps.close()
    for (position, row, num_rows, digest), tokens in zip(
        step.record.tolist(), step.rows.numpy(), strict=True
    ):
        unit = plan.pack(position).rows
        assert len(unit) == num_rows
        assert np.array_equal(unit[row], tokens)
        assert row_digest(tokens) == digest


@pytest.mark.parametrize(("workers", "padding"), [(2, 0), (2, 1), (3, 2)])
def test_a_rank_has_its_rows_at_their_places_and_zeros_elsewhere(plan, workers, padding):
    alone = steps_of(plan)
    ranks = [steps_of(plan, share=Share(rank, workers, padding)) for rank in range(workers)]

    for first_block in (padding, padding + 3, padding + 6):
        whole, parts = next(alone), [next(rank) for rank in ranks]

        for rank, part in enumerate(parts):
            mine = np.repeat([(first_block + j) % workers == rank for j in range(3)], 4)
            assert torch.equal(part.record[mine], whole.record[mine])
            assert not part.record[~mine].any()
            assert torch.equal(part.rows, whole.rows[mine])
    for steps in (alone, *ranks):
        steps.close()


def test_padding_is_passed_over(plan):
    padding = unit_block(np.zeros((4, 25), np.int32), PADDING_POSITION, 0)
    blocks = chain([padding, padding], plain_blocks(plan, LAYOUT, FIRST))
    steps = step_rows(blocks, LAYOUT, Share(padding_blocks=2), pin=False)

    step = next(steps)

    steps.close()
    assert np.array_equal(step.rows.numpy(), rows_of(plan, 12))


def test_a_stream_from_a_cursor_goes_on_exactly_where_the_first_stopped(plan):
    first = steps_of(plan)
    cursor = Cursor()
    for _ in range(3):
        cursor = check_order(next(first).record.numpy(), cursor, never_empty)

    resumed = steps_of(plan, cursor)

    for _ in range(3):
        undisturbed, again = next(first), next(resumed)
        assert torch.equal(again.rows, undisturbed.rows)
        assert torch.equal(again.record, undisturbed.record)
    first.close()
    resumed.close()


def test_a_stream_is_opened_before_a_row_is_asked_for(plan):
    opened = threading.Event()

    def blocks() -> Iterator[Block]:
        opened.set()
        yield from plain_blocks(plan, LAYOUT, FIRST)

    steps = steps_from(blocks())
    came = opened.wait(timeout=5)
    rows = next(steps).rows
    steps.close()

    assert came
    assert np.array_equal(rows.numpy(), rows_of(plan, 12))


def test_the_thread_of_a_stream_that_nobody_asked_for_a_row_ends(plan):
    before = set(threading.enumerate())
    steps = steps_of(plan)
    [thread] = set(threading.enumerate()) - before

    del steps
    thread.join(timeout=5)

    assert not thread.is_alive()


def test_an_error_of_the_source_reaches_the_consumer_after_the_rows_before_it(plan):
    def blocks() -> Iterator[Block]:
        yield from islice(plain_blocks(plan, LAYOUT, FIRST), 4)
        raise DataError("the disk is gone")

    steps = steps_from(blocks())

    assert np.array_equal(next(steps).rows.numpy(), rows_of(plan, 12))
    with pytest.raises(DataError, match="the disk is gone"):
        next(steps)


def test_a_stream_that_ends_before_the_last_step_raises(plan):
    steps = steps_from(islice(plain_blocks(plan, LAYOUT, FIRST), 5))

    next(steps)

    with pytest.raises(DataOrderError, match="ended before the last step"):
        next(steps)


def test_a_block_of_another_size_raises(plan):
    smaller = Layout(rows_per_step=12, rows_per_block=3)
    steps = steps_from(plain_blocks(plan, smaller, FIRST))

    with pytest.raises(DataOrderError, match="A block of 3 rows came where 4 were expected"):
        next(steps)


def test_rows_are_collected_one_step_ahead_and_no_further(plan):
    taken = []
    blocks = (taken.append(1) or block for block in plain_blocks(plan, LAYOUT, FIRST))  # type: ignore[func-returns-value]
    steps = steps_from(blocks)

    next(steps)

    # One step is given out, one waits in the queue and one in the thread's hands.
    assert happens(lambda: len(taken) == 9)
    time.sleep(0.3)
    assert len(taken) == 9
    steps.close()


def test_closing_stops_the_thread(plan):
    steps = steps_of(plan)
    next(steps)

    steps.close()

    assert happens(lambda: collecting_threads() == 0)


@pytest.mark.parametrize("error", [None, DataError("the disk is gone")])
def test_closing_stops_a_thread_that_has_the_end_or_an_error_to_tell(plan, error):
    def blocks() -> Iterator[Block]:
        yield from islice(plain_blocks(plan, LAYOUT, FIRST), 6)
        if error:
            raise error

    steps = steps_from(blocks())
    next(steps)
    time.sleep(0.3)  # the thread has put the second step and comes to the end

    steps.close()

    assert happens(lambda: collecting_threads() == 0)


def test_the_time_that_a_rank_waited_is_told():
    def blocks() -> Iterator[Block]:
        for row in repeat(np.zeros((12, 25), np.int32)):
            time.sleep(0.2)
            yield unit_block(row, 0, 0)

    steps = steps_from(blocks(), Layout(rows_per_step=12, rows_per_block=12))

    step = next(steps)

    steps.close()
    assert 0.15 < step.wait_seconds < 2


@pytest.mark.parametrize("device_batch_size", [1, 5, 12, 100])
def test_targets_are_the_inputs_moved_by_one(plan, device_batch_size):
    steps = steps_of(plan)
    step = next(steps)
    steps.close()

    batches = list(step.microbatches(device_batch_size, torch.device("cpu")))

    assert max(len(batch.inputs) for batch in batches) == min(device_batch_size, 12)
    inputs = torch.cat([batch.inputs for batch in batches])
    targets = torch.cat([batch.targets for batch in batches])
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs, step.rows[:, :-1].long())
    assert torch.equal(targets, step.rows[:, 1:].long())


def test_a_rank_says_again_and_again_that_it_waits_for_its_data(plan, monkeypatch):
    monkeypatch.setattr(batches, "BEAT_SECONDS", 0.01)
    told, may_come = [], threading.Event()

    def late() -> Iterator[Block]:
        assert may_come.wait(10)
        yield from plain_blocks(plan, LAYOUT, FIRST)

    def beat(doing: str) -> None:
        told.append(doing)
        if len(told) == 3:
            may_come.set()

    steps = step_rows(late(), LAYOUT, ALONE, pin=False, beat=beat)
    step = next(steps)

    steps.close()
    assert np.array_equal(step.rows.numpy(), rows_of(plan, 12))
    assert set(told) == {"waiting for data"}
