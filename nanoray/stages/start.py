"""Where a stage after pretraining starts from: the weights, their tokenizer, and their hash.

What a stage began with stands in its folder, in start.json: the checkpoint, the hash of its
weights, and a fingerprint of the sources that its config only names. Weights of the same name may
have been trained anew since, and files may have changed: then it is not the same stage any more.
"""

import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from nanoray.cluster import connection
from nanoray.config import (
    DataError,
    InputError,
    RunConfig,
    StorageError,
    continue_config,
    flag,
    from_json,
)
from nanoray.data.conversation_files import FILE_KINDS, files_at
from nanoray.data.datasets import EMBEDDED_WORDS
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.storage import START_FILE, RunFolder, StageFolder, open_location, read_json, write_json
from nanoray.task import Lessons
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import STAGES, SavedModel, find_model

logger = logging.getLogger(__name__)

MIXTURE_FILE = "mixture/mixture.json"
"""In a stage's folder; there when the mixture is whole."""
SOURCE_FLAGS = ("data", "words", "identity_file")
"""Fields that name files: what is in them decides what is learned."""

Later = TypeVar("Later", FinetuneConfig, RLConfig)
AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


@dataclass(frozen=True)
class Opened:
    """A stage that is to begin or to go on."""

    folder: StageFolder
    start: SavedModel
    facts: dict[str, Any]  # Any: JSON
    """For start.json."""
    has_begun: bool


def open_later_stage(stage: str, config: Later, storage: str) -> tuple[Later, Opened]:
    """Find a stage's folder and the checkpoint it starts from.

    Gives the config merged with the one that the stage began with. Nothing is written, but that a
    stage whose folder is gone is not finished.

    Raises:
        InputError: no run, no checkpoint to start from, or another one than the stage began with.
        StorageError: the storage cannot be read now.
    """
    if config.run is None and config.from_ is None:
        raise InputError(
            "--run is missing: name the run to go on with, or give another one and --from."
        )
    name = config.run or str(config.from_).partition("/")[0].partition("@")[0]
    folder = RunFolder(storage, name).stage(stage)
    saved = None if config.fresh else folder.read_config()
    source = source_of(folder, config.from_ or (saved["from_"] if saved else None))
    try:
        start = find_model(storage, source)
    except StorageError:  # it may well be there
        raise
    except InputError as error:
        if saved is None or config.from_ is not None:
            raise
        raise InputError(
            f"{folder} began with {source}, which is not there any more ({error}) Give --fresh to "
            "begin anew from what is there."
        ) from error
    asked = with_absolute_sources(config)
    known = {name: (saved or {}).get(name) for name in SOURCE_FLAGS if hasattr(config, name)}
    kept: dict[str, Any] = {n: getattr(asked, n) or value for n, value in known.items()}
    config = dataclasses.replace(asked, run=name, from_=start.name, **kept)
    facts = {
        "from": start.name,
        "weights": start.weights_hash(),
        "sources": fingerprints(config) if saved is None else sources_now(folder, config, asked),
    }
    if saved is None:
        if not config.fresh and folder.run.is_begun(stage):
            folder.run.forget_stage(stage)  # somebody has deleted its folder
        return config, Opened(folder, start, facts, has_begun=False)
    config = continue_config(from_json(type(config), saved), config)
    changed = changed_facts(folder, facts, config.hub_dir)
    if changed:
        raise InputError(
            f"{folder} began with other {' and '.join(changed)}. Restore what it began with, or "
            "give another --run, or --fresh to begin anew."
        )
    return config, Opened(folder, start, facts, has_begun=True)


def changed_facts(
    folder: StageFolder,
    facts: dict[str, Any],  # Any: JSON
    hub_dir: str | None,
) -> list[str]:
    """Say what is not as it was when a stage began.

    Sources count where both starts name them: what is left out now is what it was.
    """
    began = read_json(folder.fs, folder.path(START_FILE)) or {}
    changed = []
    if "weights" in facts and began.get("weights", facts["weights"]) != facts["weights"]:
        changed.append(f"weights of {facts['from']}")
    before, now = began.get("sources", {}), facts["sources"]
    changed += [
        f"contents of {flag(name)}"
        for name in now
        if now[name] is not None and before.get(name, now[name]) != now[name]
    ]
    if hub_dir is not None and hub_differs(connection.absolute_address(hub_dir), began.get("hub")):
        changed.append("contents of --hub-dir")
    return changed


def hub_differs(hub_dir: str, began: dict[str, str] | None) -> bool:
    """Say whether a folder has not the files that were read of the one a stage began with.

    A folder that is not there is not looked at: a mixture that is stored does not need it.
    """
    if not began or not os.path.isdir(hub_dir):
        return False
    return any(fingerprint(f"{hub_dir}/{name}") != known for name, known in began.items())


def hub_fingerprints(lessons: Iterable[Lessons], hub_dir: str | None) -> dict[str, str]:
    """Hash the files that lessons were read from, by their names in the folder for the hub."""
    if hub_dir is None:
        return {}
    root = connection.absolute_address(hub_dir)
    files = {file for one in lessons for file in getattr(one, "hub_files", ())}
    return {os.path.relpath(file, root): fingerprint(file) for file in sorted(files)}


def keep_start(opened: Opened) -> None:
    """Write down what a stage begins with, and have that kept: its run may still train."""
    folder = opened.folder
    if opened.has_begun:
        return
    write_json(folder.fs, folder.path(START_FILE), opened.facts)
    try:
        opened.start.keep()
    except OSError as error:  # of somebody else's run
        logger.warning(
            "%s cannot be marked as needed (%s); if its run deletes it, this stage cannot resume",
            opened.start.name,
            error,
        )


def has_mixture(folder: StageFolder) -> bool:
    """Say whether a stage has what it learns from in its own folder."""
    return bool(folder.fs.exists(folder.path(MIXTURE_FILE)))


def with_absolute_sources(config: AnyConfig) -> AnyConfig:
    """Make the addresses of the files that a config names absolute."""
    named = {name: getattr(config, name, None) for name in SOURCE_FLAGS}
    absolute: dict[str, Any] = {  # Any: fields of two classes
        name: connection.absolute_address(address)
        for name, address in named.items()
        if address is not None and address != EMBEDDED_WORDS
    }
    return dataclasses.replace(config, **absolute)


def sources_now(folder: StageFolder, config: RunConfig, asked: RunConfig) -> dict[str, str | None]:
    """Hash the files of a stage that has begun, as far as they must be what they were.

    A mixture that is stored needs its sources no more, nor does a stage that is finished: only
    those that this start names itself are compared, and not one that has gone since.

    Args:
        folder: the stage's.
        config: names all of them.
        asked: what this start gave.
    """
    if not has_mixture(folder) and not folder.run.is_done(folder.name):
        return fingerprints(config)
    began, found = folder.read_config() or {}, fingerprints(asked)
    for name in SOURCE_FLAGS:
        address = getattr(asked, name, None)
        if address is None or address != began.get(name) or address == EMBEDDED_WORDS:
            continue
        if not files_at(*open_location(address), endings_of(name)):
            logger.warning("%s %s is not there; %s needs it no more", flag(name), address, folder)
            found[name] = None
    return found


def fingerprints(config: RunConfig) -> dict[str, str | None]:
    """Hash the files that a config names, as far as they are files."""
    found: dict[str, str | None] = {}
    for name in SOURCE_FLAGS:
        address = getattr(config, name, None)
        found[name] = None if address is None else fingerprint(str(address), endings_of(name))
    return found


def endings_of(name: str) -> tuple[str, ...]:
    """Give the endings of the files that are read of a folder."""
    return tuple(FILE_KINDS) if name == "data" else ("",)


def fingerprint(address: str, endings: tuple[str, ...] = ("",)) -> str:
    """Hash names and sizes of the files at an address, and what is in them if they are small.

    Raises:
        DataError: one of them cannot be read.
    """
    fs, path = open_location(connection.absolute_address(address))
    files = files_at(fs, path, endings)
    digest = hashlib.sha256(address.encode() if not files else b"")
    for file in files:
        try:
            size = int(fs.size(file) or 0)
            content = fs.cat_file(file) if size <= 2**24 else b""
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error}). Give files that can.") from error
        digest.update(f"{file.rpartition('/')[2]} {size}\n".encode() + content)
    return digest.hexdigest()


def source_of(folder: StageFolder, asked: str | None) -> str:
    """Name what a stage starts from: what was asked for, or the latest finished stage before it.

    The bare name of its own run means the latter, or a stage could start from itself.

    Raises:
        InputError: there is none.
    """
    return stage_before(folder) if asked in (None, folder.run.run) else asked


def stage_before(folder: StageFolder) -> str:
    """Name the latest finished stage before this one.

    Raises:
        InputError: there is none.
    """
    run = folder.run
    for stage in reversed(STAGES[: STAGES.index(folder.name)]):
        steps = committed_steps(run.stage(stage))
        if run.is_done(stage) and steps:
            return f"{run.run}/{stage}"
        if run.is_done(stage) and run.stage(stage).read_config() is not None:
            raise InputError(
                f"{run}/{stage} is finished, and its checkpoints are gone. Restore them, or name "
                "with --from what to start from."
            )
        if steps:
            # Not in this run: the attempt numbers of a run are for one stage at a time.
            raise InputError(
                f"{run}/{stage} is not finished. Finish it, or give another --run and --from "
                f"{run.run}/{stage} to go on from its newest checkpoint."
            )
    raise InputError(
        f"{run} has no finished stage before {folder.name}. Train one with jobs/pretrain.py, or "
        "give --from RUN with a checkpoint."
    )


def find_tokenizer(run: RunFolder, start: SavedModel) -> Tokenizer:
    """Give the tokenizer of the checkpoint that the stage starts from.

    Raises:
        InputError: the run has another one.
    """
    tokenizer = start.tokenizer()
    if run.fs.exists(run.tokenizer_file):
        own = load_tokenizer(run.tokenizer_address)
        if own.hash != tokenizer.hash:
            raise InputError(
                f"{start.name} was trained with another tokenizer than run {run.run} has. Give "
                "another --run."
            )
    return tokenizer
