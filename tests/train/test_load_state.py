"""What is taken from a checkpoint into a state."""

import pytest
import torch

from nanoray.config import InputError
from nanoray.train.checkpoint_name import SavedModel
from nanoray.train.load_state import load_tensors, restore_state
from tests.train.saved_states import FACTS, open_checkpoints, state_at
from tests.train.tiny_run import same_contents


def test_a_warm_start_takes_weights_and_averages_and_how_often_they_were_updated(disk):
    saved = state_at(7, seed=1)
    saved.updates = 5
    checkpointer = open_checkpoints(disk)
    checkpointer.save(saved)
    checkpointer.wait()
    warm, cold, again = (state_at(0, seed=2) for _ in range(3))

    load_tensors(warm, SavedModel(disk, 7), with_optimizer=True)
    load_tensors(cold, SavedModel(disk, 7), with_optimizer=False)

    assert same_contents(warm, saved)
    assert (warm.step, warm.updates) == (0, 5)
    assert not same_contents(cold, saved)
    assert torch.equal(cold.model.embedding.weight, saved.model.embedding.weight)
    assert cold.updates == 0
    warm.step, warm.updates = 9, 14
    later = open_checkpoints(disk)
    later.save(warm)
    later.wait()
    later.restore(again, 9)
    assert again.updates == warm.updates == 14


def test_a_step_of_another_model_is_refused_before_anything_is_loaded(disk):
    checkpointer = open_checkpoints(disk)
    checkpointer.save(state_at(7, seed=1))
    checkpointer.wait()
    state, same = state_at(0, seed=2), state_at(0, seed=2)

    with pytest.raises(InputError, match="was saved with tokenizer_hash abc, not xyz"):
        restore_state(state, SavedModel(disk, 7), {**FACTS, "tokenizer_hash": "xyz"})

    assert same_contents(state, same)
