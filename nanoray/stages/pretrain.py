"""Pretraining as one function: prepare on the driver, train on the cluster, report."""

import dataclasses
import logging
import time
from collections.abc import Callable

from nanoray.cluster import connection
from nanoray.config import DataError, InputError
from nanoray.data.datasets import BYTES_PER_TOKEN, DATASETS, resolve_data
from nanoray.data.listing import find_shards
from nanoray.data.manifest import Manifest, check_unchanged, make_manifest
from nanoray.data.plan import DataPlan
from nanoray.data.unit_cache import UnitCache
from nanoray.model.scaling import flops_per_token, num_parameters
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    budget,
    check_rows,
    decide,
    model_config,
    optimizer_config,
    rows_per_step,
    schedule,
    validation_rows,
)
from nanoray.stages.pretrain_summary import finish
from nanoray.stages.stage_driver import (
    Evaluations,
    PlannedRows,
    begun_config,
    check_space,
    default_dtype,
    describe_workers,
    move_aside,
    on_gpu,
    open_job,
    planned,
    run_stage,
)
from nanoray.stages.tokenizer import bytes_per_token, learn_tokenizer
from nanoray.stages.training_job import Recipe, TrainingJob
from nanoray.storage import RunFolder, StageFolder, read_json
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer, save_tokenizer

logger = logging.getLogger(__name__)

STAGE = "pretrain"
MANY_TIMES_READ = 10
"""Text that is repeated 4 times teaches almost as if it were new, 40 times hardly anything more
(Muennighoff et al. 2023, arXiv:2305.16264)."""
UNITS_LOOKED_AT = 64
SURELY_A_ROW = 64
"""Bytes of text per token of a row; none of a vocabulary has so many in the mean."""

SAMPLE_PROMPTS = (
    "The capital of France is",
    "It is a truth universally acknowledged, that",
    "The people of the United States",
    "The opposite of hot is",
)


def pretrain(
    config: PretrainConfig,
    evaluations: Evaluations[PretrainConfig] | None = None,
    examine: Callable[[PretrainConfig], None] | None = None,
) -> str:
    """Pretrain a base model, or go on where an earlier start of the same run stopped.

    Args:
        config: what the user gave.
        evaluations: of what the run saves; without them, its config must not ask for any.
        examine: looks at the cluster before anything is written.

    Returns:
        What the user is told at the end.

    Raises:
        InputError: something the user gave does not work out; nothing was written then.
    """
    storage = connection.absolute_address(config.storage or "runs")
    if config.data is not None and config.data not in DATASETS:
        find_shards(
            connection.absolute_address(config.data)
        )  # a typo is told before a cluster starts
    began = time.time()
    connection.connect()
    if examine:
        examine(config)
    job = prepare(config, storage, evaluations)
    return run_stage(job, evaluations, lambda job: finish(job, config_of(job)), began=began)


def config_of(job: TrainingJob) -> PretrainConfig:
    """Give the config of a pretraining job."""
    assert isinstance(job.config, PretrainConfig), "made by prepare"
    return job.config


def prepare(
    config: PretrainConfig,
    storage: str,
    evaluations: Evaluations[PretrainConfig] | None = None,
) -> TrainingJob:
    """Decide and check everything, then write what the run needs into its folder."""
    config, folder = open_stage(config, storage)
    assert evaluations or not config.core_every, "the job brings the evaluations"
    if evaluations:
        evaluations.check(config)
    manifest = find_manifest(config, folder, storage)
    resources = connection.choose_resources(config)
    recipe, num_rows = recipe_of(config), rows_per_step(config)
    check_rows(config, num_rows, resources.num_workers[1])
    check_space(config, recipe, folder, resources)
    tokenizer = find_tokenizer(config, folder.run, manifest)
    assert config.max_seq_len, "decided"
    plan = DataPlan(
        manifest,
        tokenizer,
        max_seq_len=config.max_seq_len,
        packing=config.packing,
        seed=config.seed,
        cache=UnitCache(connection.absolute_address(config.unit_cache))
        if config.unit_cache
        else None,
    )
    density = bytes_per_token(tokenizer, manifest)
    if folder.read_config() is None or config.fresh:
        check_gives_rows(plan)
    # Data may still be refused here: nothing is moved or written before that.
    rows = PlannedRows(
        plan, num_rows, density, plan.sample_rows_per_unit(), validation_rows(config)
    )
    if config.fresh:
        begin_anew(folder)
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    job = open_job(folder, config, recipe=recipe, rows=rows, resources=resources)
    describe(job, config)
    return job


def check_gives_rows(plan: DataPlan) -> None:
    """Look at the beginning of the data, whose units do not go on into each other.

    Raises:
        DataError: they are too short for a row, or those are on which the model is validated.
    """
    for units, which in (
        (plan.units, "of the training part"),
        (plan.validation_units, "for validation"),
    ):
        looked_at = units[:UNITS_LOOKED_AT]
        if any(unit.num_bytes > SURELY_A_ROW * plan.max_seq_len for unit in looked_at):
            continue
        if any(len(plan.pack_unit(unit).rows) for unit in looked_at):
            continue
        raise too_short(plan, which)


def too_short(plan: DataPlan, which: str) -> DataError:
    """Say that a part of the data gives no row."""
    return DataError(
        f"--data {plan.manifest.root}: the files {which} are too short, each by itself, for a row "
        f"of {plan.max_seq_len} tokens. Join them into larger ones, or give a smaller "
        "--max-seq-len."
    )


def recipe_of(config: PretrainConfig) -> Recipe:
    """Derive from a decided config what the workers do."""
    model = model_config(config)
    assert config.dtype, "decided"
    assert config.device_batch_size, "decided"
    assert config.validate_every, "decided"
    return Recipe(
        model=model,
        dtype=config.dtype,
        optimizer=optimizer_config(config, model),
        schedule=schedule(config, budget(config, model).num_steps),
        device_batch_size=config.device_batch_size,
        validate_every=config.validate_every,
        evaluate_every=config.core_every,
        prompts=SAMPLE_PROMPTS,
    )


def open_stage(config: PretrainConfig, storage: str) -> tuple[PretrainConfig, StageFolder]:
    """Find the run's folder, and decide its config together with the one it began with."""
    gpu = on_gpu()
    name = config.run or f"d{config.depth or (20 if gpu else 4)}"
    folder = RunFolder(storage, name).stage(STAGE)
    begun = begun_config(config, folder)
    if begun is not None:
        data = (folder.read_config() or {}).get("data")
        config = dataclasses.replace(begun, data=begun.data or data)
    elif config.tokenizer is not None and config.vocab_size is None:
        vocab_size = load_tokenizer(connection.absolute_address(config.tokenizer)).vocab_size
        config = dataclasses.replace(config, vocab_size=vocab_size)
    if config.data is not None and config.data not in DATASETS:
        config = dataclasses.replace(config, data=connection.absolute_address(config.data))
    decided = decide(dataclasses.replace(config, run=name), on_gpu=gpu, dtype=default_dtype())
    return decided, folder


def find_manifest(config: PretrainConfig, folder: StageFolder, storage: str) -> Manifest:
    """List the data, or check that they are what the run began with."""
    num_bytes = budget(config, model_config(config)).tokens * BYTES_PER_TOKEN
    address = resolve_data(
        config.data, storage, num_bytes=num_bytes, locate=connection.absolute_address
    )
    saved = None if config.fresh else read_json(folder.fs, folder.path("manifest.json"))
    if saved is not None:
        return check_unchanged(Manifest.from_json(saved), address)
    return make_manifest(address, config.text_column, skip_bad_shards=config.skip_bad_shards)


def find_tokenizer(config: PretrainConfig, run: RunFolder, manifest: Manifest) -> Tokenizer:
    """Give the run's tokenizer, the one the user names, or a new one.

    Raises:
        InputError: two of them, or tokenizer and config, do not agree.
    """
    assert config.vocab_size, "decided"
    assert config.tokenizer_chars, "decided"
    existing = None
    if not config.fresh and run.fs.exists(run.tokenizer_file):
        existing = load_tokenizer(run.tokenizer_address)
    named = (
        load_tokenizer(connection.absolute_address(config.tokenizer)) if config.tokenizer else None
    )
    if existing and named and existing.hash != named.hash:
        raise InputError(
            f"--tokenizer {config.tokenizer} is not the one that run {run.run} has (hash "
            f"{named.hash[:16]}, not {existing.hash[:16]}). Leave it out, or give another --run."
        )
    tokenizer = existing or named
    if tokenizer is None:
        logger.info("training a tokenizer of %s ids", f"{config.vocab_size:,}")
        return learn_tokenizer(manifest, config.vocab_size, config.tokenizer_chars)
    if tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"--vocab-size {config.vocab_size} is not that of the tokenizer, which has "
            f"{tokenizer.vocab_size} ids. Leave it out, or give another --run."
        )
    return tokenizer


def begin_anew(folder: StageFolder) -> None:
    """Move the old stage aside, with the tokenizer that its checkpoints need."""
    moved = move_aside(folder)
    if moved is not None and folder.fs.exists(folder.run.tokenizer_file):
        folder.fs.mv(folder.run.tokenizer_file, f"{moved}/tokenizer.json")


def describe(job: TrainingJob, config: PretrainConfig) -> None:
    """Tell the user what the dial decided, before anything starts."""
    model, feed = job.model, planned(job)
    plan = budget(config, model)
    logger.info(
        "run %s: depth %d, width %d, %d heads of %d, %s ids: %s parameters, %.4g FLOPs per token",
        job.folder,
        model.num_layers,
        model.model_dim,
        model.num_heads,
        model.head_dim,
        f"{model.vocab_size:,}",
        f"{num_parameters(model):,}",
        flops_per_token(model),
    )
    logger.info(
        "%s steps of %s tokens: %s tokens, %.3g per parameter, %.4g FLOPs, %s",
        f"{plan.num_steps:,}",
        f"{config.total_batch_tokens:,}",
        f"{plan.tokens:,}",
        plan.tokens_per_param,
        plan.flops,
        config.dtype,
    )
    text = sum(unit.num_bytes for unit in feed.plan.units)
    times_read = plan.tokens * feed.bytes_per_token / text
    logger.info(
        "data: %d units, %.1f MB of text, %.2f bytes per token, %.2f epochs, packed %s",
        len(feed.plan.units),
        text / 1e6,
        feed.bytes_per_token,
        times_read,
        config.packing,
    )
    if times_read > MANY_TIMES_READ:
        logger.warning("%s", told_of_repetition(times_read, text))
    describe_workers(job)


def told_of_repetition(times_read: float, text_bytes: float) -> str:
    """Say that a run reads the same text so often that it learns little from most of it."""
    return (
        f"the run reads its {text_bytes / 1e6:,.1f} MB of text {times_read:,.0f} times, and after "
        "some 4 times a model learns ever less from the same. Give --data fineweb-edu, or more "
        "text of your own, or make the run shorter."
    )
