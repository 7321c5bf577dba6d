"""Weights and averages of a checkpoint, taken into a state that may be spread over other ranks."""

from typing import Any

from nanoray.config import InputError
from nanoray.data.plan import Cursor
from nanoray.storage import read_json
from nanoray.train.checkpoint_files import (
    LocalFiles,
    OptimizerFiles,
    load_weights,
    read_state,
    step_name,
)
from nanoray.train.checkpoint_name import SavedModel
from nanoray.train.state import TrainState


def restore_state(
    state: TrainState,
    saved: SavedModel,
    facts: dict[str, Any],  # Any: JSON
) -> None:
    """Take all of a checkpoint into a state that goes on from there.

    Args:
        state: changed in place.
        saved: a verified step.
        facts: what the checkpoint must have been saved with.

    Raises:
        InputError: it was saved with another model, tokenizer or data plan.
    """
    found = read_state(saved.folder, saved.step)
    differing = [
        f"{name} {str(found.get(name))[:80]}, not {str(value)[:80]}"
        for name, value in facts.items()
        if found.get(name) != value
    ]
    if differing:
        raise InputError(
            f"Step {saved.step} of {saved.folder} was saved with {'; '.join(differing)}. Restore "
            "what the run began with, or begin anew with another --run or --fresh."
        )
    load_tensors(state, saved, with_optimizer=True)
    state.step, state.tokens = int(found["step"]), int(found["tokens"])
    state.cursor = Cursor(*found["cursor"])
    state.guard.load(found.get("guard", {}))


def load_tensors(state: TrainState, saved: SavedModel, *, with_optimizer: bool) -> None:
    """Load the weights of a checkpoint into a state of the same shape, and its optimizer's."""
    folder = saved.folder
    path = folder.path("checkpoints", step_name(saved.step))
    # Only the manifest's files: on an object store a dead group may have left others beside.
    manifest = read_json(folder.fs, f"{path}/manifest.json") or {"files": {}}
    with LocalFiles(folder.fs, path) as files:
        load_weights(state.model, files.path("model.safetensors"))
        if not with_optimizer:
            return
        names = [name for name in manifest["files"] if name.startswith("optimizer-")]
        with OptimizerFiles([files.path(name) for name in names]) as optimizer:
            state.optimizer.load(optimizer.read)
    facts = read_state(folder, saved.step)
    skipped = facts.get("guard", {}).get("skipped", 0)
    state.updates = int(facts.get("updates", facts["step"] - skipped))
