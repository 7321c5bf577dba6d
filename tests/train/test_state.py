import math
from dataclasses import fields
from pathlib import Path

from nanoray.data.plan import Cursor
from nanoray.storage import RunFolder
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.guard import StepGuard
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld
from tests.train.tiny_run import same_contents, scramble, tiny_state


def used_guard() -> StepGuard:
    guard = StepGuard()
    for norm in (0.3, 2.0, math.inf):
        guard.judge(3.0, norm)
    return guard


OTHER_VALUES = {int: 7, Cursor: Cursor(3, 1), StepGuard: used_guard()}
"""A value that no state begins with, for each type of field that a checkpoint has to keep."""


def plain_fields() -> list[str]:
    """Name what is neither a tensor nor, like the data left out before a step, None after it."""
    others = ("model", "optimizer", "left_out_from")
    return [f.name for f in fields(TrainState) if f.name not in others]


def plain_values(state: TrainState) -> list[object]:
    values = [getattr(state, name) for name in plain_fields()]
    return [value.to_json() if isinstance(value, StepGuard) else value for value in values]


def test_a_state_begins_at_the_first_row():
    state = tiny_state()

    assert (state.step, state.tokens, state.cursor) == (0, 0, Cursor(0, 0))


def test_a_checkpoint_keeps_every_field_of_the_state(tmp_path: Path):
    saved, restored = tiny_state(), tiny_state()
    scramble(saved, seed=1)
    for name in plain_fields():
        setattr(saved, name, OTHER_VALUES[type(getattr(saved, name))])
    folder = RunFolder(str(tmp_path), "tiny").stage("pretrain")
    attempt = folder.run.begin_attempt("pretrain")
    checkpointer = Checkpointer(folder, LocalWorld(), attempt=attempt, facts={})

    checkpointer.save(saved)
    checkpointer.wait()
    checkpointer.restore(restored, saved.step)

    assert plain_values(restored) == plain_values(saved) != plain_values(tiny_state())
    assert same_contents(restored, saved)
