"""Where a stage after pretraining starts from: the weights, their tokenizer, and their hash.

What a stage began with stands in its folder, in start.json: the checkpoint, the hash of its
weights, and a fingerprint of the sources that its config only names. Weights of the same name may
have been trained anew since, and files may have changed: then it is not the same stage any more.
"""

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from typing import Any, TypeVar

from nanoray.cluster import connection
from nanoray.config import InputError, RunConfig, continue_config, flag, from_json
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.storage import RunFolder, StageFolder, open_location, read_json, write_json
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import STAGES, SavedModel, find_model

logger = logging.getLogger(__name__)

START_FILE = "start.json"
SOURCE_FLAGS = ("data", "words", "identity_file")
"""Fields that name files: what is in them decides what is learned."""

Later = TypeVar("Later", FinetuneConfig, RLConfig)


@dataclass(frozen=True)
class Opened:
    """A stage that is to begin or to go on."""

    folder: StageFolder
    start: SavedModel
    facts: dict[str, Any]  # Any: JSON
    """For start.json."""
    has_begun: bool


def open_later_stage(stage: str, config: Later, storage: str) -> tuple[Later, Opened]:
    """Find a stage's folder and the checkpoint it starts from; nothing is written.

    Gives the config merged with the one that the stage began with.

    Raises:
        InputError: no run, no checkpoint to start from, or another one than the stage began with.
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
    except InputError as error:
        if saved is None or config.from_ is not None:
            raise
        raise InputError(
            f"{folder} began with {source}, which is not there any more ({error}) Give --fresh to "
            "begin anew from what is there."
        ) from error
    known = {name: (saved or {}).get(name) for name in SOURCE_FLAGS if hasattr(config, name)}
    kept: dict[str, Any] = {n: getattr(config, n) or value for n, value in known.items()}
    config = dataclasses.replace(config, run=name, from_=start.name, **kept)
    facts = {
        "from": start.name,
        "weights": start.weights_hash(),
        "sources": fingerprints(config),
    }
    if saved is None:
        return config, Opened(folder, start, facts, has_begun=False)
    config = continue_config(from_json(type(config), saved), config)
    changed = changed_facts(folder, facts)
    if changed:
        raise InputError(
            f"{folder} began with other {' and '.join(changed)}. Restore what it began with, or "
            "give another --run, or --fresh to begin anew."
        )
    return config, Opened(folder, start, facts, has_begun=True)


def changed_facts(folder: StageFolder, facts: dict[str, Any]) -> list[str]:  # Any: JSON
    """Say what is not as it was when a stage began.

    Sources count where both starts name them: what is left out now is what it was.
    """
    began = read_json(folder.fs, folder.path(START_FILE)) or {}
    changed = []
    if began.get("weights", facts["weights"]) != facts["weights"]:
        changed.append(f"weights of {facts['from']}")
    before, now = began.get("sources", {}), facts["sources"]
    return changed + [
        f"contents of {flag(name)}"
        for name in now
        if now[name] is not None and before.get(name, now[name]) != now[name]
    ]


def keep_start(opened: Opened) -> None:
    """Write down what a stage begins with."""
    folder = opened.folder
    if not opened.has_begun:
        write_json(folder.fs, folder.path(START_FILE), opened.facts)


def fingerprints(config: RunConfig) -> dict[str, str | None]:
    """Hash the files that a config names, as far as they are files."""
    found: dict[str, str | None] = {}
    for name in SOURCE_FLAGS:
        address = getattr(config, name, None)
        found[name] = None if address is None else fingerprint(str(address))
    return found


def fingerprint(address: str) -> str:
    """Hash names and sizes of the files at an address, and what is in them if they are small."""
    fs, path = open_location(connection.absolute_address(address))
    is_pattern = any(sign in path for sign in "*?[")
    files = sorted(fs.glob(path)) if is_pattern else sorted(fs.find(path))
    digest = hashlib.sha256(address.encode() if not files else b"")
    for file in files:
        size = int(fs.size(file) or 0)
        digest.update(f"{str(file).rsplit('/', 1)[-1]} {size}\n".encode())
        if size <= 2**24:
            digest.update(fs.cat_file(file))
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
    done = run.read_state().get("stages_done", [])
    for stage in reversed(STAGES[: STAGES.index(folder.name)]):
        steps = committed_steps(run.stage(stage))
        if stage in done and steps:
            return f"{run.run}/{stage}"
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
