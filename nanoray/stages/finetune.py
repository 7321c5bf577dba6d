"""Midtraining and SFT as one function: mix conversations, and go on training with them."""

import contextlib
import dataclasses
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from nanoray.cluster import connection
from nanoray.config import InputError, flag
from nanoray.data.conversation_files import ConversationFiles, find_conversations
from nanoray.data.conversations import CONVERSATIONS, CUT, LEARNED, PADDING, UNLEARNABLE
from nanoray.data.manifest import UNIT_BYTES, Manifest, check_unchanged, make_manifest
from nanoray.data.mixture import CONVERSATION_COLUMN, Part, write_mixture
from nanoray.data.plan import DataPlan
from nanoray.data.row_counts import ROWS, TOKENS, count_rows
from nanoray.stages.finetune_config import (
    COURSES,
    DATA,
    FinetuneConfig,
    SourceAsked,
    decide,
    parse_mixture,
    recipe_of,
    validation_rows,
    with_length,
)
from nanoray.stages.finetune_summary import finish
from nanoray.stages.pretrain_config import check_rows, rows_of_batch
from nanoray.stages.stage_driver import (
    Evaluations,
    Examine,
    PlannedRows,
    check_space,
    default_dtype,
    describe_workers,
    move_aside,
    on_gpu,
    open_job,
    planned,
    run_stage,
)
from nanoray.stages.start import (
    Opened,
    find_tokenizer,
    has_mixture,
    hub_fingerprints,
    keep_start,
    open_later_stage,
)
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import is_local, move_folder, read_json, write_json
from nanoray.task import Example, Lessons
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.checkpoint_name import SavedModel

logger = logging.getLogger(__name__)

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
MakeLessons = Callable[[FinetuneConfig, str, Split, int | None], Lessons]
"""Gives the lessons of a source by its name; the number is how many a made-up source has."""

COUNTS_FILE = "rows.json"
HELD_OUT_SEED = 42
HELD_OUT_ONE_IN = 20
"""Of the user's own conversations: to validate on."""
LEAST_UNIT_BYTES = 200_000
UNITS = 32
"""A small mixture is cut into this many units, so that its epochs differ in their order."""


class SomeConversations:
    """Some of the user's own conversations."""

    def __init__(self, files: ConversationFiles, indices: Sequence[int]) -> None:
        self.name, self.files, self.indices = files.name, files, indices

    def __len__(self) -> int:
        """Give the number of examples."""
        return len(self.indices)

    def example(self, index: int) -> Example:
        """Give one example."""
        return self.files.example(self.indices[index])

    def where(self, index: int) -> str:
        """Say where it stands."""
        return self.files.where(self.indices[index])


def finetune(
    stage: str,
    config: FinetuneConfig,
    make_lessons: MakeLessons,
    evaluations: Evaluations[FinetuneConfig],
    examine: Examine | None = None,
) -> str:
    """Train a stage on conversations, or go on where an earlier start of it stopped.

    Args:
        stage: `midtrain` or `sft`.
        config: what the user gave.
        make_lessons: where the conversations come from.
        evaluations: of what the stage saves.
        examine: looks at the cluster before anything is written.

    Returns:
        What the user is told at the end.

    Raises:
        InputError: something the user gave does not work out.
    """
    storage = connection.absolute_address(config.storage or "runs")
    began = time.time()
    connection.connect()
    job = prepare(stage, config, storage, make_lessons, evaluations, examine)
    return run_stage(job, evaluations, finish, began=began)


def prepare(
    stage: str,
    config: FinetuneConfig,
    storage: str,
    make_lessons: MakeLessons,
    evaluations: Evaluations[FinetuneConfig],
    examine: Examine | None = None,
) -> TrainingJob:
    """Decide and check everything, mix the conversations, and open the stage."""
    config, opened = open_later_stage(stage, config, storage)
    folder, start, course = opened.folder, opened.start, COURSES[stage]
    config = decide(config, course, start.config(), on_gpu=on_gpu(), dtype=default_dtype())
    evaluations.check(config)
    rows_per_step = rows_of_batch(config.total_batch_tokens, config.max_seq_len)
    resources = connection.choose_resources(config, most_workers=rows_per_step)
    check_rows(config, rows_per_step, resources.num_workers[1])
    if examine:
        examine(config, folder, resources)
    tokenizer = find_tokenizer(folder.run, start)
    if config.warm_start and (config.fresh or not committed_steps(folder)):
        start.check_optimizer()
    with mixture(config, opened, make_lessons) as manifest:
        plan = plan_of(config, manifest, tokenizer)
        counts = count_once(opened, plan)
        config = with_length(config, counts[ROWS])
        recipe = recipe_of(config, course, start, text_start=tokenizer.bos_id)
        check_space(config, recipe, folder, resources)
    plan = plan_of(config, check_unchanged(manifest, f"{folder}/mixture"), tokenizer)
    write_json(folder.fs, folder.path(COUNTS_FILE), {"data_hash": plan.hash, "counts": counts})
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    keep_start(opened)
    num_bytes = sum(unit.num_bytes for unit in plan.units)
    rows = PlannedRows(
        plan,
        rows_per_step,
        bytes_per_token=num_bytes / (counts[ROWS] * plan.max_seq_len),
        rows_per_unit=counts[ROWS] / len(plan.units),
        validation_rows=validation_rows(config),
    )
    job = open_job(folder, config, recipe=recipe, rows=rows, resources=resources)
    describe(job, config, start, counts)
    return job


def read_sources(
    config: FinetuneConfig, make_lessons: MakeLessons
) -> tuple[list[Part], list[Part]]:
    """Read the sources of the mixture to learn from, and of the one to validate on.

    Raises:
        InputError: a source that is not there, or files that no mixture names.
    """
    assert config.mixture, "decided"
    assert config.validation_mixture, "decided"
    asked = [parse_mixture(config.mixture), parse_mixture(config.validation_mixture)]
    if config.data is not None and DATA not in [one.name for one in asked[0]]:
        raise InputError(
            f"--data {config.data} is not in --mixture {config.mixture}. Add {DATA} to it, or "
            "leave --data out."
        )
    training, validation = (
        [
            Part(lessons_of(config, one, split, make_lessons), one.epochs, one.limit)
            for one in sources
        ]
        for sources, split in zip(asked, SPLITS, strict=True)
    )
    return training, validation


@contextlib.contextmanager
def mixture(
    config: FinetuneConfig, opened: Opened, make_lessons: MakeLessons
) -> Iterator[Manifest]:
    """Give what the stage's mixture is made of, the one that it has or another.

    That is mixed aside, and takes its place when the context ends well. Only then an earlier stage
    is moved aside: it is not given up for what cannot be learned from.

    Raises:
        InputError: sources that are not there, or conversations that cannot be learned from.
    """
    folder, fs = opened.folder, opened.folder.fs
    saved = read_json(fs, folder.path("manifest.json")) if opened.has_begun else None
    if opened.has_begun and has_mixture(folder):
        yield list_mixture(f"{folder}/mixture", saved)
        return
    name = f".{folder.name}-mixture"
    aside = folder.run.path(name)
    try:
        sources = read_sources(config, make_lessons)
        lessons = [part.lessons for parts in sources for part in parts]
        opened.facts["hub"] = hub_fingerprints(lessons, config.hub_dir)
        mix(config, opened, aside, sources)
        yield list_mixture(f"{folder.run}/{name}", saved)
    except BaseException:
        if fs.exists(aside):
            fs.rm(aside, recursive=True)
        if is_local(fs):
            with contextlib.suppress(OSError):  # it has something else in it
                os.rmdir(folder.run.path())
        raise
    if not opened.has_begun:
        move_aside(folder)
    elif fs.exists(folder.path("mixture")):  # half deleted
        fs.rm(folder.path("mixture"), recursive=True)
    fs.makedirs(folder.path(), exist_ok=True)
    move_folder(fs, aside, folder.path("mixture"))


def mix(
    config: FinetuneConfig, opened: Opened, place: str, sources: tuple[list[Part], list[Part]]
) -> None:
    """Write a mixture into a folder, with what it was asked for."""
    facts = {
        "training": config.mixture,
        "validation": config.validation_mixture,
        "files of --hub-dir": opened.facts["hub"],
        **{
            f"file of {flag(name)}": known
            for name, known in opened.facts["sources"].items()
            if known
        },
    }
    training, validation = sources
    write_mixture(
        opened.folder.fs,
        place,
        training,
        validation,
        facts=facts,
        skip_bad=config.skip_bad_conversations,
    )


def list_mixture(address: str, saved: dict[str, Any] | None) -> Manifest:  # Any: JSON
    """List what a mixture is made of, or check that it is what the stage began with.

    Raises:
        DataError: it is not.
    """
    if saved is not None:
        return check_unchanged(Manifest.from_json(saved), address)
    manifest = make_manifest(address, CONVERSATION_COLUMN)
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    unit_bytes = max(LEAST_UNIT_BYTES, min(UNIT_BYTES, num_bytes // UNITS))
    return dataclasses.replace(manifest, unit_bytes=unit_bytes)


def lessons_of(
    config: FinetuneConfig, asked: SourceAsked, split: Split, make_lessons: MakeLessons
) -> Lessons:
    """Read one source."""
    if asked.name != DATA:
        return make_lessons(config, asked.name, split, asked.limit)
    if config.data is None:
        raise InputError(f"The mixture has {DATA!r}, and --data is missing. Give it, or leave out.")
    lessons = find_conversations(config.data)
    if len(lessons) < 2:
        raise InputError(
            f"--data {config.data} has {len(lessons)} conversations; the least is 2, one to learn "
            "from and one to validate on."
        )
    # At random: every twentieth of a file could be all of one kind.
    count = max(1, len(lessons) // HELD_OUT_ONE_IN)
    held_out = set(random.Random(HELD_OUT_SEED).sample(range(len(lessons)), count))
    wanted = [i for i in range(len(lessons)) if (i in held_out) == (split == "test")]
    return SomeConversations(lessons, wanted)


def plan_of(config: FinetuneConfig, manifest: Manifest, tokenizer: Tokenizer) -> DataPlan:
    """Plan the rows of a decided config."""
    assert config.max_seq_len, "decided"
    return DataPlan(
        manifest,
        tokenizer,
        max_seq_len=config.max_seq_len,
        packing=f"chat-{config.learn}",
        seed=config.seed,
    )


def count_once(opened: Opened, plan: DataPlan) -> dict[str, int]:
    """Count the rows of the plan, or read what was counted when the stage began.

    Raises:
        InputError: no conversation has anything to learn.
    """
    folder = opened.folder
    saved = read_json(folder.fs, folder.path(COUNTS_FILE)) or {}
    if opened.has_begun and saved.get("data_hash") == plan.hash:
        return dict(saved["counts"])
    counts = count_rows(plan)
    if not counts[ROWS] or not len(plan.validation_rows(1)):
        part = "validate on" if counts[ROWS] else "learn from"
        raise InputError(
            f"None of the conversations to {part} has a token to learn within --max-seq-len "
            f"{plan.max_seq_len}. Give others, or longer rows."
        )
    return counts


def describe(
    job: TrainingJob, config: FinetuneConfig, start: SavedModel, counts: dict[str, int]
) -> None:
    """Tell the user what is trained on what, before anything starts."""
    feed = planned(job)
    cells = counts[ROWS] * (feed.plan.max_seq_len + 1)
    logger.info("%s goes on from %s, learning %s tokens", job.folder, start.name, config.learn)
    logger.info(
        "%s conversations, %s tokens, %s of them to learn, in %s rows, %.1f %% padding",
        *(f"{counts.get(name, 0):,}" for name in (CONVERSATIONS, TOKENS, LEARNED, ROWS)),
        100 * counts.get(PADDING, 0) / cells,
    )
    for name in (CUT, UNLEARNABLE):
        if counts.get(name):
            logger.warning("%s: %s", name, f"{counts[name]:,}")
    logger.info(
        "%s steps of %s tokens, %.2f epochs, learning rates times %g",
        f"{job.num_steps:,}",
        f"{config.total_batch_tokens:,}",
        job.num_steps * feed.layout.rows_per_step / counts[ROWS],
        config.lr_fraction,
    )
    describe_workers(job)
