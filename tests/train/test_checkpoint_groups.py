"""Checkpoints of several ranks, of other numbers of ranks, and of groups that were cut off."""

import time
from typing import Any

import pytest

from nanoray.config import RunReplacedError
from nanoray.data.plan import Cursor
from nanoray.storage import StageFolder
from nanoray.train import checkpoint as checkpoint_module
from nanoray.train.checkpoint_files import (
    CheckpointError,
    committed_steps,
    lock_out,
    newest_verified_step,
)
from nanoray.train.state import TrainState
from tests.train.ranks import GroupWorld
from tests.train.saved_states import open_checkpoints, state_at
from tests.train.tiny_run import same_contents, scramble, tiny_state


def group_of(size: int, whole: TrainState) -> list[TrainState]:
    """Share out a state over ranks, as they hold it while they train."""
    saved = {piece.name: piece.tensor for piece in whole.optimizer.slices()}
    group = []
    for rank in range(size):
        state = tiny_state(GroupWorld(rank, size))
        state.model.load_state_dict(whole.model.state_dict())
        state.optimizer.load(lambda name, start, end: saved[name][start:end])
        state.step, state.tokens, state.cursor = whole.step, whole.tokens, whole.cursor
        group.append(state)
    return group


def save_group(folder: StageFolder, group: list[TrainState], attempt: int) -> None:
    """Save as the ranks of a group do, each its own part."""
    world_size = len(group)
    checkpointers = [
        open_checkpoints(folder, GroupWorld(rank, world_size), attempt)
        for rank in range(world_size)
    ]
    for checkpointer, state in zip(checkpointers, group, strict=True):
        checkpointer.save(state)
    for checkpointer in checkpointers:
        checkpointer.wait()


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (5, 2)])
def test_any_number_of_ranks_restores_what_any_other_saved(folder, before, after):
    whole = state_at(4, seed=1)
    save_group(folder, group_of(before, whole), folder.run.begin_attempt("pretrain"))

    restored = [state_for_rank(rank, after) for rank in range(after)]
    for rank, state in enumerate(restored):
        open_checkpoints(folder, GroupWorld(rank, after)).restore(state, 4)

    expected = group_of(after, whole)
    for state, wanted in zip(restored, expected, strict=True):
        assert same_contents(state, wanted)
        assert (state.step, state.tokens, state.cursor) == (4, 4000, Cursor(12, 4))


def state_for_rank(rank: int, world_size: int) -> TrainState:
    state = tiny_state(GroupWorld(rank, world_size))
    scramble(state, seed=100 + rank)
    return state


def test_a_group_that_was_replaced_can_commit_nothing(folder):
    old = open_checkpoints(folder)
    folder.run.begin_attempt("pretrain")

    old.save(state_at(1))

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        old.wait()
    assert committed_steps(folder) == []


def test_a_group_that_was_replaced_leaves_its_successors_files_alone(folder):
    old, new = open_checkpoints(folder), open_checkpoints(folder)
    new.save(state_at(1, seed=2))
    new.wait()

    old.save(state_at(1, seed=1))

    with pytest.raises(RunReplacedError, match="has replaced"):
        old.wait()
    assert newest_verified_step(folder) == 1
    restored = state_at(0)
    new.restore(restored, 1)
    assert same_contents(restored, state_at(1, seed=2))


def test_a_group_that_is_replaced_while_it_writes_can_commit_nothing(folder):
    def replace_it() -> None:
        folder.run.begin_attempt("pretrain")

    old = open_checkpoints(folder)

    old.save(state_at(1), before_commit=replace_it)

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        old.wait()
    assert committed_steps(folder) == []


@pytest.mark.parametrize("last_call", ["make_room", "write_json"], ids=["disk", "bucket"])
def test_a_group_that_is_replaced_after_its_last_look_commits_nothing_that_counts(
    request, monkeypatch, last_call
):
    folder = request.getfixturevalue("disk" if last_call == "make_room" else "bucket")
    work = getattr(checkpoint_module, last_call)
    chosen: list[int | None] = []

    def replaced(*args: Any) -> None:
        is_last = last_call == "make_room" or args[1].endswith("manifest.json")
        if is_last and not chosen:
            folder.run.begin_attempt("pretrain")
            lock_out(folder)
            chosen.append(newest_verified_step(folder))
        work(*args)

    old = open_checkpoints(folder)
    old.save(state_at(1))
    old.wait()
    monkeypatch.setattr(checkpoint_module, last_call, replaced)
    old.save(state_at(2))

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        old.wait()
    assert chosen == [1]
    assert newest_verified_step(folder) == 1


def test_a_save_of_other_ranks_is_not_taken_for_what_a_dead_group_has_left(bucket, monkeypatch):
    old = open_checkpoints(bucket, GroupWorld(0, 1))
    attempt = bucket.run.begin_attempt("pretrain")
    first, second = (open_checkpoints(bucket, GroupWorld(rank, 2), attempt) for rank in (0, 1))
    # It looked just before, and commits step 9 all the same.
    monkeypatch.setattr(old, "check_attempt", lambda: None)
    old.save(state_at(9))
    old.wait()

    five, six = (group_of(2, state_at(step, seed=step)) for step in (5, 6))
    second.save(five[1])
    second.save(six[1])
    second.wait()
    for state in (five[0], six[0]):
        first.save(state)
        first.wait()

    assert committed_steps(bucket) == [5, 6, 9]
    restored = state_at(0)
    open_checkpoints(bucket).restore(restored, 6)
    assert same_contents(restored, state_at(6, seed=6))


def test_the_part_of_a_dead_rank_is_not_taken_for_that_of_a_living_one(folder):
    dead, alive = (group_of(2, state_at(1, seed=seed)) for seed in (1, 2))
    died = open_checkpoints(folder, GroupWorld(1, 2))
    died.save(dead[1])
    died.wait()
    attempt = folder.run.begin_attempt("pretrain")
    first, second = (open_checkpoints(folder, GroupWorld(rank, 2), attempt) for rank in (0, 1))

    first.save(alive[0])
    time.sleep(0.3)
    steps_before = committed_steps(folder)
    second.save(alive[1])
    first.wait()

    assert steps_before == []
    restored = state_at(0)
    open_checkpoints(folder).restore(restored, 1)
    assert same_contents(restored, state_at(1, seed=2))


def test_what_a_dead_larger_group_left_of_a_step_does_not_mix_with_it(folder):
    dead, alive = state_at(1, seed=1), state_at(1, seed=2)
    first = folder.run.begin_attempt("pretrain")
    for rank, state in enumerate(group_of(3, dead)[1:], start=1):  # rank 0 died
        checkpointer = open_checkpoints(folder, GroupWorld(rank, 3), first)
        checkpointer.save(state)
        checkpointer.wait()

    save_group(folder, group_of(2, alive), folder.run.begin_attempt("pretrain"))

    restored = state_at(0)
    open_checkpoints(folder).restore(restored, 1)
    assert same_contents(restored, alive)


def test_rank_0_gives_a_step_up_whose_other_parts_never_come(disk, monkeypatch):
    monkeypatch.setattr(checkpoint_module, "COMMIT_TIMEOUT_SECONDS", 0.2)
    checkpointer = open_checkpoints(disk, GroupWorld(0, 2), patience_seconds=0.1)

    checkpointer.save(group_of(2, state_at(1))[0])

    with pytest.raises(CheckpointError, match="rank 1 did not write its part of step 1"):
        checkpointer.wait()
    assert committed_steps(disk) == []
