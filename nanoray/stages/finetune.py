"""Midtraining and SFT as one function: mix conversations, and go on training with them."""

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Literal

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
from nanoray.stages.start import find_tokenizer, keep_start, open_later_stage
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import StageFolder, read_json, write_json
from nanoray.task import Example, Lessons
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint_name import SavedModel

logger = logging.getLogger(__name__)

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")
MakeLessons = Callable[[FinetuneConfig, str, Split, int | None], Lessons]
"""Gives the lessons of a source by its name; the number is how many a made-up source has."""

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
) -> str:
    """Train a stage on conversations, or go on where an earlier start of it stopped.

    Args:
        stage: `midtrain` or `sft`.
        config: what the user gave.
        make_lessons: where the conversations come from.
        evaluations: of what the stage saves.

    Returns:
        What the user is told at the end.

    Raises:
        InputError: something the user gave does not work out.
    """
    storage = connection.absolute_address(config.storage or "runs")
    began = time.time()
    connection.connect()
    job = prepare(stage, config, storage, make_lessons, evaluations)
    return run_stage(job, evaluations, finish, began=began)


def prepare(
    stage: str,
    config: FinetuneConfig,
    storage: str,
    make_lessons: MakeLessons,
    evaluations: Evaluations[FinetuneConfig],
) -> TrainingJob:
    """Decide and check everything, mix the conversations, and open the stage."""
    config, opened = open_later_stage(stage, config, storage)
    folder, start, course = opened.folder, opened.start, COURSES[stage]
    config = decide(config, course, start.config(), on_gpu=on_gpu(), dtype=default_dtype())
    evaluations.check(config)
    rows_per_step = rows_of_batch(config.total_batch_tokens, config.max_seq_len)
    resources = connection.choose_resources(config, most_workers=rows_per_step)
    check_rows(config, rows_per_step, resources.num_workers[1])
    tokenizer = find_tokenizer(folder.run, start)
    place = folder.path("mixture")
    mixed = not config.fresh and read_json(folder.fs, f"{place}/mixture.json") is not None
    # Read before anything is moved: what was there is not given up for what cannot be had.
    sources = None if mixed else read_sources(config, make_lessons)
    if config.fresh:
        move_aside(folder)
    manifest = mix(config, folder, opened.facts["sources"], sources)
    plan = plan_of(config, manifest, tokenizer)
    counts = count_once(folder, plan)
    config = with_length(config, counts[ROWS])
    recipe = recipe_of(config, course, start, text_start=tokenizer.bos_id)
    check_space(config, recipe, folder, resources)
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    keep_start(opened)
    num_bytes = sum(unit.num_bytes for unit in plan.units)
    rows = PlannedRows(
        plan,
        rows_per_step,
        bytes_per_token=num_bytes / (counts[ROWS] * plan.max_seq_len),
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


def mix(
    config: FinetuneConfig,
    folder: StageFolder,
    fingerprints: dict[str, str | None],
    sources: tuple[list[Part], list[Part]] | None,
) -> Manifest:
    """Mix the conversations, unless that is done, and list what the mixture is made of."""
    address, place = f"{folder}/mixture", folder.path("mixture")
    saved = read_json(folder.fs, folder.path("manifest.json"))
    if saved is not None:
        return check_unchanged(Manifest.from_json(saved), address)
    training, validation = sources or ([], [])
    facts = {
        "training": config.mixture,
        "validation": config.validation_mixture,
        **{f"file of {flag(name)}": known for name, known in fingerprints.items() if known},
    }
    write_mixture(
        folder.fs,
        place,
        training,
        validation,
        facts=facts,
        skip_bad=config.skip_bad_conversations,
    )
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


def count_once(folder: StageFolder, plan: DataPlan) -> dict[str, int]:
    """Count the rows of the plan, or read what was counted when the stage began.

    Raises:
        InputError: no conversation has anything to learn.
    """
    path = folder.path("rows.json")
    saved = read_json(folder.fs, path) or {}
    if saved.get("data_hash") == plan.hash:
        return dict(saved["counts"])
    counts = count_rows(plan)
    if not counts[ROWS] or not len(plan.validation_rows(1)):
        part = "validate on" if counts[ROWS] else "learn from"
        raise InputError(
            f"None of the conversations to {part} has a token to learn within --max-seq-len "
            f"{plan.max_seq_len}. Give others, or longer rows."
        )
    write_json(folder.fs, path, {"data_hash": plan.hash, "counts": counts})
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
