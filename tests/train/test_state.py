from dataclasses import fields
from pathlib import Path

from nanoray.data.plan import Cursor
from nanoray.storage import RunFolder
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld
from tests.train.tiny_run import same_contents, scramble, tiny_state

OTHER_VALUES = {int: 7, Cursor: Cursor(3, 1)}
"""A value that no state begins with, for each type of field that a checkpoint has to keep."""


def plain_fields() -> list[str]:
    return [f.name for f in fields(TrainState) if f.name not in ("model", "optimizer")]


def test_a_state_begins_at_the_first_row():
    state = tiny_state()

    assert (state.step, state.tokens, state.cursor) == (0, 0, Cursor(0, 0))


def test_a_checkpoint_keeps_every_field_of_the_state(tmp_path: Path):
    saved, restored = tiny_state(), tiny_state()
    scramble(saved, seed=1)
    for name in plain_fields():
        setattr(saved, name, OTHER_VALUES[type(getattr(saved, name))])
    folder = RunFolder(str(tmp_path), "tiny").stage("pretrain")
    checkpointer = Checkpointer(folder, LocalWorld(), attempt=1, facts={})

    checkpointer.save(saved)
    checkpointer.wait()
    checkpointer.restore(restored, saved.step)

    assert [getattr(restored, n) for n in plain_fields()] == [
        getattr(saved, n) for n in plain_fields()
    ]
    assert same_contents(restored, saved)
