"""A trial that begins with the steps of a longer one: its checkpoint and its logs, copied."""

import json
import logging

from nanoray.goodput import CATEGORIES, DOLLARS, key
from nanoray.metrics import read_metrics
from nanoray.ops.trials import Trial
from nanoray.stages.pretrain import STAGE
from nanoray.storage import (
    RunFolder,
    StageFolder,
    is_local,
    list_folder,
    move_folder,
    read_json,
    write_file,
    write_json,
)
from nanoray.train.checkpoint_files import committed_steps, step_name

logger = logging.getLogger(__name__)

BRANCH_FILE = "branch.json"
MANIFEST = "manifest.json"


def take_over(trial: Trial) -> None:
    """Give a trial the beginning that its trunk has made, unless it has begun.

    Where the trunk has none to give, the trial is trained from its first step, to the same end.
    """
    storage = trial.config.storage
    assert storage, "decided"
    folder = RunFolder(storage, trial.name).stage(STAGE)
    if trial.trunk is None or folder.read_config() is not None:
        return
    trunk, step = RunFolder(storage, trial.trunk).stage(STAGE), trial.branch_step
    if step not in committed_steps(trunk) or trunk.fs.exists(trunk.path("rollbacks.json")):
        logger.warning("%s has no step %d to go on from, and is trained whole", trial.trunk, step)
        return
    for name in ("metrics.jsonl", "ledger.jsonl"):
        copy_log(trunk, folder, name, step)
    write_json(folder.fs, folder.path(BRANCH_FILE), {"from": trial.trunk, "step": step})
    copy_step(trunk, folder, step)
    folder.note_saved(step)


def copy_log(source: StageFolder, target: StageFolder, name: str, last_step: int) -> None:
    """Copy the lines of a log up to a step; the time and money spent on them are the trunk's."""
    spent = {*map(key, CATEGORIES), DOLLARS}
    lines = [
        {field: value for field, value in record.items() if field not in spent}
        for record in read_metrics(source.fs, source.path(name))
        if record["step"] <= last_step
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    write_file(target.fs, target.path(name), content.encode())


def copy_step(source: StageFolder, target: StageFolder, step: int) -> None:
    """Copy a checkpoint; like one that is saved, it counts with the last act or not at all."""
    fs, name = source.fs, step_name(step)
    whole = target.path("checkpoints", name)
    aside = target.path("checkpoints", f".{name}.attempt-0000") if is_local(fs) else whole
    fs.makedirs(aside, exist_ok=True)
    files = list_folder(fs, source.path("checkpoints", name))
    for file in sorted(files, key=lambda file: file == MANIFEST):
        fs.copy(source.path("checkpoints", name, file), f"{aside}/{file}")
    if is_local(fs) and not fs.exists(whole):
        move_folder(fs, aside, whole)


def steps_taken_over(folder: StageFolder) -> int:
    """Count the steps of a trial that another one has made."""
    told = read_json(folder.fs, folder.path(BRANCH_FILE)) or {}
    return int(told.get("step", 0))
