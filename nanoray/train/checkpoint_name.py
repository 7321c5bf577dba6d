"""`RUN[/stage][@step]`: how a checkpoint is named on every command line, and how it is loaded."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from nanoray.config import InputError, StorageError
from nanoray.model.gpt import GPT, GPTConfig
from nanoray.storage import RunFolder, StageFolder, is_outage, read_json, write_file
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.checkpoint_files import (
    LocalFiles,
    committed_steps,
    find_damage,
    read_state,
    step_name,
)

STAGES = ("pretrain", "midtrain", "sft", "rl")
"""In the order in which a run goes through them."""
NEEDED_FILES = ("model.safetensors", "state.json")
"""Without the optimizer's, which are larger than all else."""
PATTERN = re.compile(r"(?P<run>[^/@]+)(/(?P<stage>[^/@]+))?(@(?P<step>\d+))?")


@dataclass(frozen=True)
class SavedModel:
    """One committed step of a stage, whose weights are whole."""

    folder: StageFolder
    step: int

    @property
    def name(self) -> str:
        """The full name: RUN/stage@step."""
        return f"{self.folder.run.run}/{self.folder.name}@{self.step}"

    @property
    def _kept_file(self) -> str:
        """There where a later stage began with this step."""
        return self.folder.path("kept", step_name(self.step))

    def keep(self) -> None:
        """Keep this step for good, whatever else of its run is deleted."""
        write_file(self.folder.fs, self._kept_file, b"")

    def is_kept(self) -> bool:
        """Say whether this step is kept for good."""
        return bool(self.folder.fs.exists(self._kept_file))

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer of the run.

        Raises:
            InputError: it is not the one that the weights were trained with.
        """
        tokenizer = load_tokenizer(self.folder.run.tokenizer_address)
        trained = read_state(self.folder, self.step)["tokenizer_hash"]
        if tokenizer.hash != trained:
            raise InputError(
                f"{self.folder.run.tokenizer_address} has the hash {tokenizer.hash[:16]}, and "
                f"{self.name} was trained with {trained[:16]}. Restore the run's tokenizer."
            )
        return tokenizer

    def weights_hash(self) -> str:
        """Give the SHA-256 of the file with the weights, as it was written down with it."""
        path = self.folder.path("checkpoints", step_name(self.step), "manifest.json")
        manifest = read_json(self.folder.fs, path) or {}
        return str(manifest["files"]["model.safetensors"]["sha256"])

    def check_optimizer(self) -> None:
        """Read all files once, the optimizer's too, to see that they are whole.

        Raises:
            InputError: one of them is damaged or missing.
            StorageError: the storage cannot be read now.
        """
        path = self.folder.path("checkpoints", step_name(self.step))
        with _told_if_away(self.folder.run.storage, self.name):
            damage = find_damage(self.folder.fs, path)
            if damage is None:
                files = (read_json(self.folder.fs, f"{path}/manifest.json") or {})["files"]
                if not any(name.startswith("optimizer-") for name in files):
                    damage = "manifest.json lists none"
        if damage is not None:
            raise InputError(
                f"--warm-start needs the optimizer of {self.name}, which is not whole: {damage}. "
                "Name another checkpoint with --from, or leave --warm-start out."
            )

    def mark_evaluated(self) -> None:
        """Record that nobody waits any more for these weights to be evaluated."""
        write_file(self.folder.fs, self._evaluated_path(), b"")

    def is_evaluated(self) -> bool:
        """Say whether these weights were evaluated, or given up."""
        return bool(self.folder.fs.exists(self._evaluated_path()))

    def _evaluated_path(self) -> str:
        """Name a file after the weights: after a rollback a step may be there with others."""
        return self.folder.path("evals", step_name(self.step), f"done-{self.weights_hash()[:8]}")

    def config(self) -> GPTConfig:
        """Read shape and numerics of the model."""
        return GPTConfig(**read_state(self.folder, self.step)["model"])

    def weights(self) -> dict[str, Tensor]:
        """Read all weights, as they were saved."""
        path = self.folder.path("checkpoints", step_name(self.step))
        with LocalFiles(self.folder.fs, path) as files:
            return load_file(files.path("model.safetensors"))

    def load(self, compute_dtype: torch.dtype, device: torch.device) -> GPT:
        """Build the model with its weights, on a device."""
        model = GPT(self.config(), compute_dtype)
        model.load_state_dict(self.weights())
        return model.to(device)


def find_model(storage: str, name: str) -> SavedModel:
    """Find the checkpoint of a name, and read it once to see that it is whole.

    Without a stage it is of the latest stage that is finished, or else has a checkpoint; without a
    step, the newest one whose weights are whole.

    Raises:
        InputError: no such run, stage or step, or a damaged one.
        StorageError: the storage cannot be read now.
    """
    with _told_if_away(storage, name):
        return _find_whole(storage, name)


@contextlib.contextmanager
def _told_if_away(storage: str, name: str) -> Iterator[None]:
    """Turn an outage of the storage, for which each filesystem has its own errors, into one."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise
        raise StorageError(
            f"{storage} cannot be read now ({error}), so {name} is not known to be whole. "
            "Try again when it can."
        ) from error


def _find_whole(storage: str, name: str) -> SavedModel:
    """Find a checkpoint and verify its weights."""
    stage, steps = find_steps(storage, name)
    asked = PATTERN.fullmatch(name)
    if asked is None or asked["step"] is None:
        return newest_whole(stage, steps)
    [step] = steps
    damage = find_model_damage(stage, step)
    if damage is not None:
        others = committed_steps(stage)
        raise InputError(f"{name} is damaged: {damage}. There are {others}; name another one.")
    return SavedModel(stage, step)


def find_steps(storage: str, name: str) -> tuple[StageFolder, list[int]]:
    """Find the stage and the committed steps that a name may mean; no weights are read.

    Raises:
        InputError: no such run, stage or step.
    """
    match = PATTERN.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} names no checkpoint. Write RUN, RUN/stage or RUN/stage@step.")
    run = RunFolder(storage, match["run"])
    stage = run.stage(match["stage"] or latest_stage(run))
    steps = committed_steps(stage)
    if not steps:
        raise InputError(
            f"{stage} has no checkpoint. Name a run of {storage} that has saved one, or another "
            "--storage."
        )
    if match["step"] is None:
        return stage, steps
    if int(match["step"]) not in steps:
        kept = ", ".join(map(str, steps))
        raise InputError(f"{stage} has no checkpoint of step {match['step']}. It has {kept}.")
    return stage, [int(match["step"])]


def latest_stage(run: RunFolder) -> str:
    """Give the last stage that is finished, or else the last that has saved something."""
    done = run.read_state().get("stages_done", [])
    finished = [stage for stage in STAGES if stage in done]
    begun = [stage for stage in STAGES if committed_steps(run.stage(stage))]
    return [STAGES[0], *begun, *finished][-1]


def newest_whole(stage: StageFolder, steps: list[int]) -> SavedModel:
    """Give the newest step whose weights are whole; a damaged one is left for its run to move.

    Raises:
        InputError: all are damaged.
    """
    damage = None
    for step in reversed(steps):
        damage = find_model_damage(stage, step)
        if damage is None:
            return SavedModel(stage, step)
    raise InputError(f"{stage} has no whole checkpoint of {steps}: {damage}.")


def find_model_damage(stage: StageFolder, step: int) -> str | None:
    """Say what is wrong with the weights of a step; None if nothing is."""
    return find_damage(stage.fs, stage.path("checkpoints", step_name(step)), NEEDED_FILES)
