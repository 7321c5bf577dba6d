"""kill -9 in the middle of a write, again and again: what counts is whole, and is gone on from."""

import random
import time
from collections.abc import Callable
from itertools import count
from multiprocessing.connection import Connection

import pytest
import torch

from nanoray.storage import RunFolder, StageFolder, list_folder
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import (
    committed_steps,
    find_damage,
    lock_out,
    newest_verified_step,
    step_name,
)
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld
from tests.train.ranks import GroupWorld, process_context
from tests.train.tiny_run import contents, tiny_state

RANKS = 2
KILLS = 20
MOST_TRIES = 60
"""Some kills come just before a write or just after it, and do not count."""


def fill(state: TrainState, step: int) -> None:
    """Make every number of a state say its step."""
    state.step = step
    with torch.no_grad():
        for tensor in [*state.model.parameters(), *(s.tensor for s in state.optimizer.slices())]:
            tensor.fill_(step)


def holds(state: TrainState, step: int) -> bool:
    return state.step == step and all((tensor == step).all() for tensor in contents(state).values())


def save_for_ever(place: str, news: Connection) -> None:
    """Go on from the newest verified step as a run does, and save every step on all ranks.

    Tells where it went on and, of each save, when it begins and how long it took.
    """
    torch.set_num_threads(1)
    folder = RunFolder(place, "tiny").stage("pretrain")
    attempt = folder.run.begin_attempt("pretrain")
    lock_out(folder)
    first = newest_verified_step(folder) or 0
    group = [GroupWorld(rank, RANKS) for rank in range(RANKS)]
    savers = [Checkpointer(folder, world, attempt=attempt, facts={}) for world in group]
    states = [tiny_state(world, vocab_size=8192) for world in group]
    for saver, state in zip(savers, states, strict=True):
        if first:
            saver.restore(state, first)
            assert holds(state, first), f"step {first} is not what was saved"
    news.send(("from", first))
    for step in count(first + 1):
        for state in states:
            fill(state, step)
        news.send(("save", step))
        began = time.perf_counter()
        for saver, state in zip(savers, states, strict=True):
            saver.save(state)
        for saver in savers:
            saver.wait()
        news.send(("saved", time.perf_counter() - began))


def hear(news: Connection, kind: str) -> float:
    """Wait for the next message of a kind."""
    while True:
        assert news.poll(60), f"no {kind} came"
        found, value = news.recv()
        if found == kind:
            return float(value)


def is_half_written(folder: StageFolder, step: int) -> bool:
    """Say whether a step was being written: its folder is there, and not in its place."""
    names = list_folder(folder.fs, folder.path("checkpoints"))
    return any(name.startswith(f".{step_name(step)}.") for name in names)


def kill_while_writing(folder: StageFolder, draw: Callable[[], float]) -> tuple[int, bool]:
    """Start a saver and kill it in its second save; gives where it began and what it left."""
    ours, theirs = process_context().Pipe()
    saver = process_context().Process(
        target=save_for_ever, args=(folder.run.storage, theirs), daemon=True
    )
    saver.start()
    theirs.close()
    first = int(hear(ours, "from"))
    takes = hear(ours, "saved")
    step = int(hear(ours, "save"))
    time.sleep(draw() * takes)
    saver.kill()
    saver.join()
    return first, is_half_written(folder, step)


@pytest.mark.proof
def test_kill_9_at_20_random_moments_of_a_write_leaves_only_whole_steps(disk, caplog):
    draw = random.Random(0)
    newest = half_written = tries = 0

    while half_written < KILLS:
        tries += 1
        assert tries <= MOST_TRIES, f"only {half_written} of {tries} kills came during a write"
        first, left_half = kill_while_writing(disk, draw.random)
        half_written += left_half

        assert first == newest
        steps = committed_steps(disk)
        for step in steps:
            assert find_damage(disk.fs, disk.path("checkpoints", step_name(step))) is None
        assert steps[-1] > newest
        newest = steps[-1]

    restored = tiny_state(LocalWorld(), vocab_size=8192)
    Checkpointer(disk, LocalWorld(), attempt=99, facts={}).restore(restored, newest)
    assert holds(restored, newest)
    assert "damaged" not in list_folder(disk.fs, disk.path("checkpoints"))
    assert caplog.records == []
