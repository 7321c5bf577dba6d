"""Pretraining as one function: prepare on the driver, train on the cluster, report."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import ray
import torch

from nanoray.cluster import connection
from nanoray.cluster.group import Group, run_on_workers
from nanoray.config import InputError, continue_config, from_json, to_json
from nanoray.data.blocks import layout_for
from nanoray.data.datasets import BYTES_PER_TOKEN, DATASETS, resolve_data
from nanoray.data.feed import start_pacer
from nanoray.data.manifest import Manifest, check_unchanged, find_shards, make_manifest
from nanoray.data.plan import DataPlan
from nanoray.events import DONE, INTERRUPTED, append_event
from nanoray.model.scaling import flops_per_token, num_parameters
from nanoray.progress import RunDisplay
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    budget,
    checkpoint_bytes,
    decide,
    model_config,
    rows_per_step,
)
from nanoray.stages.pretrain_summary import finish
from nanoray.stages.pretrain_worker import STAGE, PretrainJob
from nanoray.stages.tokenizer import bytes_per_token, learn_tokenizer
from nanoray.storage import RunFolder, StageFolder, read_json, with_patience, write_json
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer, save_tokenizer
from nanoray.train.device import training_dtype

logger = logging.getLogger(__name__)


class Evaluations(Protocol):
    """Evaluates what a run saves, if its config asks for it."""

    def check(self, config: PretrainConfig) -> None:
        """Read what is needed.

        Raises:
            InputError: it is not there.
        """
        ...

    def watch(self, job: PretrainJob) -> AbstractContextManager[None]:
        """Evaluate saved steps while the context is open, and what is left when it is closed."""
        ...


def pretrain(config: PretrainConfig, evaluations: Evaluations | None = None) -> str:
    """Pretrain a base model, or go on where an earlier start of the same run stopped.

    Args:
        config: what the user gave.
        evaluations: of what the run saves; without them, its config must not ask for any.

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
    job = prepare(config, storage, evaluations)
    describe(job)
    folder = job.folder
    with evaluations.watch(job) if evaluations else contextlib.nullcontext():
        if STAGE in folder.run.read_state().get("stages_done", []):
            logger.info("this run is finished; --fresh begins it anew")
        else:
            append_event(folder, "start", time=began)
            train_on_cluster(job)
    return with_patience(lambda: finish(job), job.config.storage_patience_seconds, str(folder))


def prepare(
    config: PretrainConfig, storage: str, evaluations: Evaluations | None = None
) -> PretrainJob:
    """Decide and check everything, then write what the run needs into its folder."""
    config, folder = open_stage(config, storage)
    assert evaluations or not config.core_every, "the job brings the evaluations"
    if evaluations:
        evaluations.check(config)
    manifest = find_manifest(config, folder, storage)
    resources = connection.choose_resources(config)
    rows, most_workers = rows_per_step(config), resources.num_workers[1]
    if most_workers > rows:
        raise InputError(
            f"--num-workers {config.num_workers or most_workers} is more than the {rows} rows of a "
            f"step. Give at most {rows}, or a larger --total-batch-tokens."
        )
    num_kept = config.keep_last + 1 + most_waiting(config, resources)
    folder.run.check_writable(checkpoint_bytes(model_config(config)) * num_kept)
    tokenizer = find_tokenizer(config, folder.run, manifest)
    assert config.max_seq_len, "decided"
    assert config.device_batch_size, "decided"
    plan = DataPlan(
        manifest,
        tokenizer,
        max_seq_len=config.max_seq_len,
        packing=config.packing,
        seed=config.seed,
    )
    if config.fresh:
        begin_anew(folder)
    save_tokenizer(tokenizer, folder.run.tokenizer_address)
    write_json(folder.fs, folder.path("manifest.json"), manifest.to_json())
    folder.write_config(to_json(config))
    layout = layout_for(rows, config.device_batch_size, most_workers)
    return PretrainJob(
        config=config,
        storage=storage,
        plan=plan,
        layout=layout,
        resources=resources,
        bytes_per_token=bytes_per_token(tokenizer, manifest),
        pacer=start_pacer(layout, most_workers, resources.num_readers),
    )


def open_stage(config: PretrainConfig, storage: str) -> tuple[PretrainConfig, StageFolder]:
    """Find the run's folder, and decide its config together with the one it began with."""
    on_gpu = connection.cluster_total()["GPU"] >= 1
    name = config.run or f"d{config.depth or (20 if on_gpu else 4)}"
    folder = RunFolder(storage, name).stage(STAGE)
    saved = None if config.fresh else folder.read_config()
    if saved is not None:
        began = from_json(PretrainConfig, saved)
        config = continue_config(began, config)
        config = dataclasses.replace(config, data=config.data or began.data)
    elif config.tokenizer is not None and config.vocab_size is None:
        vocab_size = load_tokenizer(connection.absolute_address(config.tokenizer)).vocab_size
        config = dataclasses.replace(config, vocab_size=vocab_size)
    if config.data is not None and config.data not in DATASETS:
        config = dataclasses.replace(config, data=connection.absolute_address(config.data))
    dtype = (
        "bfloat16" if on_gpu else str(training_dtype(torch.device("cpu"))).removeprefix("torch.")
    )
    return decide(dataclasses.replace(config, run=name), on_gpu=on_gpu, dtype=dtype), folder


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


def most_waiting(config: PretrainConfig, resources: connection.Resources) -> int:
    """Count the checkpoints that may have to be kept until they are evaluated."""
    if config.core_every is None:
        return 0
    if resources.use_gpu and connection.gpus_present() <= resources.num_workers[1]:
        return budget(config, model_config(config)).num_steps // config.core_every
    return 1


def begin_anew(folder: StageFolder) -> None:
    """Move the old stage aside, with the tokenizer that its checkpoints need."""
    moved = folder.move_aside()
    if moved is None:
        return
    if folder.fs.exists(folder.run.tokenizer_file):
        folder.fs.mv(folder.run.tokenizer_file, f"{moved}/tokenizer.json")
    folder.run.forget_stage(folder.name)
    logger.info("moved the earlier run to %s", moved)


def describe(job: PretrainJob) -> None:
    """Tell the user what the dial decided, before anything starts."""
    config, model = job.config, job.model
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
    text = sum(unit.num_bytes for unit in job.plan.units)
    logger.info(
        "data: %d units, %.1f MB of text, %.2f bytes per token, %.2f epochs, packed %s",
        len(job.plan.units),
        text / 1e6,
        job.bytes_per_token,
        plan.tokens * job.bytes_per_token / text,
        config.packing,
    )
    least, most = job.resources.num_workers
    logger.info(
        "%s worker(s) on %s with %g CPUs and %d threads each; a step is %d blocks of %d rows",
        least if least == most else f"{least} to {most}",
        "GPU" if job.resources.use_gpu else "CPU",
        job.resources.cpus_per_worker,
        job.resources.threads_per_worker,
        job.layout.blocks_per_step,
        job.layout.rows_per_block,
    )


def train_on_cluster(job: PretrainJob) -> None:
    """Run the workers until the last step is saved."""
    display = RunDisplay(job.num_steps, log_every=job.config.log_every)
    assert job.config.device_batch_size, "decided"
    group = Group(
        worker=job.work,
        begin=job.begin,
        newest_step=job.newest_step,
        record=job.record,
        device_batch_size=job.config.device_batch_size,
        pacer=job.pacer,
        resources=job.resources,
        max_restarts=job.config.max_restarts,
        hang_seconds=job.config.hang_seconds,
    )
    with recorded(job.folder, job.config.storage_patience_seconds):
        result = run_on_workers(group, job.folder.run, display)
    packed = ray.get(job.pacer.totals.remote())
    facts = {
        **(result if isinstance(result, dict) else {}),
        "dropped_tokens_share": packed["dropped_tokens"] / max(1, packed["tokens"]),
    }

    def mark() -> None:
        write_json(job.folder.fs, job.folder.path("result.json"), facts)
        job.folder.run.mark_done(STAGE)

    with_patience(mark, job.config.storage_patience_seconds, str(job.folder))


@contextlib.contextmanager
def recorded(folder: StageFolder, patience_seconds: float) -> Iterator[None]:
    """Record when the job asks the cluster for workers, and how that ended.

    A run that has ended well waits for its storage; one that failed tells of its own failure.
    """
    append_event(folder, "submit")
    try:
        yield
    except BaseException as error:
        why = INTERRUPTED if isinstance(error, KeyboardInterrupt) else type(error).__name__
        try:
            append_event(folder, "stop", why=why)
        except OSError as unwritten:
            logger.warning("%s could not be told how the job ended: %s", folder, unwritten)
        raise
    with_patience(lambda: append_event(folder, "stop", why=DONE), patience_seconds, str(folder))
