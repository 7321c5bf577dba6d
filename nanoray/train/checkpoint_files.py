"""Files of checkpoints: their names, how they are verified, and how they are read."""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from fsspec import AbstractFileSystem
from safetensors import safe_open
from torch import Tensor

from nanoray.config import FORMAT_VERSION, StorageError
from nanoray.model.gpt import GPT
from nanoray.storage import StageFolder, is_local, list_folder, move_folder, read_json

logger = logging.getLogger(__name__)

READ_BYTES = 2**22
UNCOMMITTED = re.compile(r"\.step_\d+\.attempt-(\d+)")
"""On a filesystem, the folder in which an attempt writes a step before it counts."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used or written; `remedy` says what the reader should do."""

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem} {self.remedy}"


def step_name(step: int) -> str:
    """Give the folder name of a step."""
    return f"step_{step:06d}"


def committed_steps(folder: StageFolder) -> list[int]:
    """List the steps that were committed, ascending; their files are not verified.

    On an object store a step without a manifest was never finished. On a filesystem, where steps
    appear whole, its manifest was lost, which `newest_verified_step` finds.
    """
    names = list_folder(folder.fs, folder.path("checkpoints"))
    steps = sorted(
        int(name[5:]) for name in names if name.startswith("step_") and name[5:].isdigit()
    )
    if is_local(folder.fs):
        return steps
    return [
        n
        for n in steps
        if folder.fs.exists(folder.path("checkpoints", step_name(n), "manifest.json"))
    ]


def newest_verified_step(folder: StageFolder) -> int | None:
    """Find the newest step of which every file is whole; damaged ones are moved aside."""
    for step in reversed(committed_steps(folder)):
        path = folder.path("checkpoints", step_name(step))
        problem = find_damage(folder.fs, path)
        if problem is None:
            return step
        moved = move_aside(folder, step, "damaged")
        logger.warning(
            "checkpoint of step %d is damaged (%s); moved it to %s", step, problem, moved
        )
    return None


def first_step(folder: StageFolder) -> int:
    """Choose the step from which a group starts: the newest that is whole, 0 where there is none.

    Raises:
        OSError: there may be one, in a folder that cannot be seen, or could not a moment ago.
    """
    step = newest_verified_step(folder)
    if step is not None:
        return step
    folder.check_present()
    if committed_steps(folder):
        raise FileNotFoundError(f"{folder.path('checkpoints')} was away for a moment")
    return 0


def move_aside(folder: StageFolder, step: int, reason: str) -> str:
    """Move a step to where it does not count, without deleting it; gives its new place."""
    name = f"{step_name(step)}-{time.strftime('%Y%m%d-%H%M%S')}"
    moved = folder.path("checkpoints", reason, name)
    folder.fs.makedirs(folder.path("checkpoints", reason), exist_ok=True)
    move_folder(folder.fs, folder.path("checkpoints", step_name(step)), moved)
    return moved


def lock_out(folder: StageFolder) -> None:
    """Take from earlier attempts what they have not committed yet, so that they never can.

    To be called when the number of a newer attempt is written, and before anybody looks which steps
    there are: a group that was cut off may have read the old number just before, and commit now. On
    a filesystem it finds no folder to rename any more; on an object store its manifest lists files
    that are not there.
    """
    path = folder.path("checkpoints")
    names = list_folder(folder.fs, path)
    if not is_local(folder.fs):
        committed = {step_name(step) for step in committed_steps(folder)}
        for name in names:
            if name[:5] == "step_" and name[5:].isdigit() and name not in committed:
                folder.fs.rm(f"{path}/{name}", recursive=True)
        return
    for name in names:
        if UNCOMMITTED.fullmatch(name):  # renamed, because deleting takes time
            os.rename(f"{path}/{name}", f"{path}/{name}.left-{uuid.uuid4().hex[:8]}")


def leftovers(folder: StageFolder, attempt: int, saved: int) -> list[str]:
    """Name the folders that attempts before this one left half written or half deleted.

    On an object store only those before `saved`, the newest step that this attempt has committed:
    its other ranks may be writing the next one already. There may be a larger one, of a group that
    was cut off as it committed it.
    """
    names = list_folder(folder.fs, folder.path("checkpoints"))
    if is_local(folder.fs):
        found = [(name, UNCOMMITTED.match(name)) for name in names]
        return [name for name, at in found if at is not None and int(at[1]) < attempt]
    committed = {step_name(step) for step in committed_steps(folder)}
    steps = [name for name in names if name[:5] == "step_" and name[5:].isdigit()]
    return [name for name in steps if name not in committed and int(name[5:]) < saved]


def make_room(folder: StageFolder, step: int, attempt: int) -> None:
    """Move a step aside that a group which was cut off has committed before this attempt could."""
    path = folder.path("checkpoints", step_name(step))
    manifest = read_json(folder.fs, f"{path}/manifest.json")
    if manifest is not None and manifest["attempt"] < attempt:
        moved = move_aside(folder, step, "replaced")
        logger.warning("step %d was committed by another attempt; moved it to %s", step, moved)


def read_state(folder: StageFolder, step: int) -> dict[str, Any]:  # Any: JSON
    """Read state.json of a committed step."""
    return read_json(folder.fs, folder.path("checkpoints", step_name(step), "state.json")) or {}


def find_damage(
    fs: AbstractFileSystem, path: str, names: Sequence[str] | None = None
) -> str | None:
    """Verify a committed step, or some files of it; gives what is wrong with it, or None.

    Damage is what the files themselves show: one is missing, or has another size or checksum.
    Storage that fails to read them (busy, timed out, keys that have expired) says nothing about
    them, and its errors are left to the caller.
    """
    try:
        manifest = read_json(fs, f"{path}/manifest.json")
    except StorageError:
        return "manifest.json is not JSON"
    if manifest is None or manifest.get("format_version") != FORMAT_VERSION:
        return "it has no manifest.json of this format"
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(facts, dict) and {"bytes", "sha256"} <= facts.keys() for facts in files.values()
    ):
        return "manifest.json does not list its files"
    missing = [name for name in names or () if name not in files]
    if missing:
        return f"manifest.json does not list {missing[0]}"
    for name, expected in files.items():
        if names is not None and name not in names:
            continue
        try:
            found = describe_file(fs, f"{path}/{name}")
        except FileNotFoundError:
            return f"{name} is missing"
        if found["bytes"] != expected["bytes"]:
            return f"{name} has {found['bytes']} bytes, not {expected['bytes']}"
        if found["sha256"] != expected["sha256"]:
            return f"{name} does not have its checksum"
    return None


def describe_file(fs: AbstractFileSystem, path: str) -> dict[str, Any]:  # Any: JSON
    """Give size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with fs.open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return {"bytes": size, "sha256": digest.hexdigest()}


class LocalFiles(ExitStack):
    """Files of a folder as local paths; those on an object store are fetched first."""

    def __init__(self, fs: AbstractFileSystem, folder: str) -> None:
        super().__init__()
        self.fs, self.folder = fs, folder
        self._fetched = "" if is_local(fs) else self.enter_context(tempfile.TemporaryDirectory())

    def path(self, name: str) -> str:
        """Give a local path to the file."""
        if is_local(self.fs):
            return f"{self.folder}/{name}"
        self.fs.get_file(f"{self.folder}/{name}", f"{self._fetched}/{name}")
        return f"{self._fetched}/{name}"


class OptimizerFiles(ExitStack):
    """The optimizer state of a step, whole again from the files of all ranks that saved it."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self.pieces: dict[
            str, list[tuple[int, Any]]
        ] = {}  # Any: safe_open's handle has no public type
        for path in paths:
            file = self.enter_context(safe_open(path, framework="pt"))
            starts = json.loads(file.metadata()["starts"])
            for name in file.keys():  # noqa: SIM118 (not a dict)
                self.pieces.setdefault(name, []).append((int(starts[name]), file))

    def read(self, name: str, start: int, end: int) -> Tensor:
        """Give rows start..end of one state tensor, whichever files they are in."""
        rows: list[Tensor] = []
        for first, file in sorted(self.pieces.get(name, []), key=lambda piece: piece[0]):
            part = file.get_slice(name)
            last = first + part.get_shape()[0]
            if first < end and start < last:
                rows.append(part[max(start - first, 0) : min(end - first, last - first)])
        found = sum(map(len, rows))
        assert found == end - start, f"{name} has {found} of the rows {start} to {end}"
        return torch.cat(rows)


def load_weights(model: GPT, path: str) -> None:
    """Copy weights from a safetensors file into a model of the same config."""
    parameters = dict(model.named_parameters())
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert names == set(parameters), (
            f"{path} holds {sorted(names ^ set(parameters))[:3]} too many or few"
        )
        for name, parameter in parameters.items():
            parameter.data.copy_(file.get_tensor(name))
