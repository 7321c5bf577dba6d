"""Fetching the shards of a named dataset ahead of the run that needs them."""

import logging
import os
from dataclasses import dataclass

from nanoray.config import InputError, flag, require_positive
from nanoray.data.datasets import (
    BYTES_PER_TOKEN,
    DATASETS,
    dataset_folder,
    fetch_dataset,
    shards_for,
)
from nanoray.progress import duration
from nanoray.stages.pretrain_config import PretrainConfig, budget, decide, model_config

logger = logging.getLogger(__name__)

PLAN_FIELDS = (
    "depth",
    "vocab_size",
    "max_seq_len",
    "head_dim",
    "total_batch_tokens",
    "num_steps",
    "tokens_per_param",
    "target_flops",
)
"""Fields that describe a run; they have the names that they have in its own config."""
EXAMPLE_SPEEDS = (100e6, 10e6)
"""Bytes per second for which the duration is told before there is a measured speed."""


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """Fetch a named dataset: a number of shards, or as many as a run on GPUs will read."""

    data: str
    """climbmix or fineweb-edu."""
    storage: str | None = None
    """Folder or address (s3://, gs://, ...) that the run will have too; by default ./runs."""
    num_shards: int | None = None
    """Shards to train on; the last one of the dataset, for validation, always comes too."""
    depth: int | None = None
    """Transformer blocks of the model to be trained; by default 20."""
    vocab_size: int | None = None
    """Ids of its tokenizer; by default 65,536."""
    max_seq_len: int | None = None
    """Tokens in a row; by default 2048."""
    head_dim: int | None = None
    """Dimensions of one attention head; by default 128."""
    total_batch_tokens: int | None = None
    """Tokens per step over all workers; by default 524,288."""
    num_steps: int | None = None
    """Length of the run in steps."""
    tokens_per_param: float | None = None
    """Length of the run in tokens per parameter; by default 20."""
    target_flops: float | None = None
    """Length of the run in floating-point operations."""
    dry_run: bool = False
    """Only say what would be fetched."""

    def __post_init__(self) -> None:
        require_positive("num_shards", self.num_shards)
        if self.data not in DATASETS:
            raise InputError(
                f"--data {self.data} is no public dataset that nanoray knows. Give "
                f"{' or '.join(DATASETS)}; other data are read where they are."
            )
        planned = [flag(name) for name in PLAN_FIELDS if getattr(self, name) is not None]
        if self.num_shards is not None and planned:
            raise InputError(
                f"--num-shards and {', '.join(planned)} both say how much to fetch. "
                "Give the number of shards, or the run that they are for."
            )
        if self.num_shards is None and not planned:
            raise InputError(
                "Nothing says how much to fetch. Give --num-shards 8, or the run that the data are "
                "for, as in --depth 20 --tokens-per-param 20."
            )


def fetch(config: FetchConfig) -> str:
    """Tell what is to be fetched, fetch it, and say where it is.

    Raises:
        InputError: a run that does not work out, a shard that cannot be had, too little space.
    """
    dataset, storage = DATASETS[config.data], absolute_storage(config.storage or "runs")
    num_bytes, reason = wanted_text(config)
    indices = shards_for(dataset, num_bytes)
    folder = dataset_folder(config.data, storage)
    missing = folder.missing(list(dataset.urls(indices)))
    lines = [
        reason,
        f"{len(indices):,} of the {dataset.num_shards:,} shards of {config.data} hold it, "
        "the one for validation included",
    ]
    if not missing:
        return "\n".join([*lines, f"nothing is to be fetched: all are in {folder.address}"])
    size = dataset.file_bytes_per_shard * len(missing)
    times = [f"{duration(size / speed)} at {speed / 1e6:g} MB/s" for speed in EXAMPLE_SPEEDS]
    lines.append(
        f"the fetch takes {', '.join(times)}; the first shard to arrive tells how long here"
    )
    if config.dry_run:
        return "\n".join([*lines, f"to be fetched: {folder.describe(missing)}"])
    for line in lines:
        logger.info("%s", line)
    fetch_dataset(config.data, storage, indices)
    return f"all {len(indices):,} shards are in {folder.address}"


def absolute_storage(storage: str) -> str:
    """Make a local path absolute; this job runs where it is called, and needs no cluster."""
    return storage if "://" in storage else os.path.abspath(os.path.expanduser(storage))


def wanted_text(config: FetchConfig) -> tuple[float, str]:
    """Say how many bytes of text to fetch, and why so many.

    Raises:
        InputError: a width, batch or horizon that does not work out.
    """
    dataset = DATASETS[config.data]
    if config.num_shards is not None:
        # Counted before it is multiplied: a number of any size would overflow.
        num_shards = min(config.num_shards, dataset.num_shards - 1)
        num_bytes = num_shards * dataset.text_bytes_per_shard
        return num_bytes, f"--num-shards {config.num_shards}: {num_bytes / 1e9:,.1f} GB of text"
    asked = {name: getattr(config, name) for name in PLAN_FIELDS}
    run = decide(PretrainConfig(**asked), on_gpu=True, dtype="bfloat16")
    tokens = budget(run, model_config(run)).tokens
    num_bytes = tokens * BYTES_PER_TOKEN
    reason = (
        f"{run.run} with {run.vocab_size:,} ids reads {tokens:,} tokens: {num_bytes / 1e9:,.1f} GB "
        f"of text at {BYTES_PER_TOKEN} bytes each"
    )
    most = (dataset.num_shards - 1) * dataset.text_bytes_per_shard
    if num_bytes > most:
        reason += f", which is all of the dataset {num_bytes / most:.1f} times"
    return num_bytes, reason
