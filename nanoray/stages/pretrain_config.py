"""What pretraining is told, and what is decided where nothing was said."""

import dataclasses
import math
from dataclasses import dataclass

from nanoray.config import (
    DTYPE_NAMES,
    InputError,
    RunConfig,
    flag,
    identity,
    require_one_of,
    require_positive,
)
from nanoray.data.packing import PACKINGS
from nanoray.model.gpt import GPTConfig
from nanoray.model.scaling import (
    LearningRates,
    TrainingBudget,
    gpt_config,
    learning_rates,
    num_parameters,
    training_budget,
)
from nanoray.text.tokenizer import SMALLEST_VOCABULARY
from nanoray.train.optimizer import OptimizerConfig
from nanoray.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """Pretrain a base model from raw text."""

    data: str | None = None
    """Folder, glob or address of parquet files, climbmix, or fineweb-edu; else embedded texts."""
    text_column: str = identity("text")
    """Column of the parquet files that holds the text."""
    skip_bad_shards: bool = False
    """Leave shards out whose footer is damaged, with a warning, instead of stopping."""
    tokenizer: str | None = None
    """A tokenizer.json to use; by default one is trained when the run begins."""
    tokenizer_chars: int | None = identity()
    """Bytes of the training part's text that a new tokenizer is trained on; by default 2e9."""
    vocab_size: int | None = identity()
    """Ids of a new tokenizer, special tokens included; by default 65,536 on GPUs, 8192 on CPUs."""
    depth: int | None = identity()
    """Transformer blocks; width, heads and rates follow from it; by default 20, 4 on CPUs."""
    head_dim: int | None = identity()
    """Dimensions of one attention head; by default 128, 64 on CPUs."""
    max_seq_len: int | None = identity()
    """Tokens in a row; by default 2048, 512 on CPUs."""
    total_batch_tokens: int | None = identity()
    """Tokens per step over all workers; by default 524,288, 16,384 on CPUs."""
    tokens_per_param: float | None = identity()
    """Length of the run in tokens per parameter; by default 20, 1 on CPUs."""
    target_flops: float | None = identity()
    """Length of the run in floating-point operations."""
    packing: str = identity("bestfit")
    """bestfit: every row begins with a document; flat: one stream of tokens, as d34 had it."""
    embedding_dtype: str = identity("float32")
    """Precision in which the embedding is kept; d34 had bfloat16."""
    unit_cache: str | None = None
    """Folder or address in which tokenized text is kept for other runs; by default it is not."""
    validation_tokens: int | None = None
    """Tokens of the validation part that are used; by default 10,485,760, and 131,072 on CPUs."""
    core_every: int | None = None
    """Steps between evaluations of CORE, elsewhere on the cluster; by default there are none."""
    core_max_per_task: int | None = None
    """Questions of each task of CORE in such an evaluation; by default all."""
    eval_bundle: str | None = None
    """Folder or zip file with CORE's tasks; by default the published one is fetched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "tokenizer_chars",
            "depth",
            "head_dim",
            "max_seq_len",
            "total_batch_tokens",
            "validation_tokens",
            "core_every",
            "core_max_per_task",
        ):
            require_positive(name, getattr(self, name))
        require_positive("vocab_size", self.vocab_size, least=SMALLEST_VOCABULARY)
        require_one_of("packing", self.packing, PACKINGS)
        require_one_of("embedding_dtype", self.embedding_dtype, DTYPE_NAMES)
        horizons = [
            n for n in ("num_steps", "tokens_per_param", "target_flops") if getattr(self, n)
        ]
        if len(horizons) > 1:
            raise InputError(
                f"{' and '.join(map(flag, horizons))} all say how long the run is. Give one."
            )


def decide(config: PretrainConfig, *, on_gpu: bool, dtype: str) -> PretrainConfig:
    """Fill in what was left open, for GPUs or CPUs, and check that the numbers fit together.

    Raises:
        InputError: a width, batch or horizon that does not work out.
    """
    c = config
    depth = c.depth or (20 if on_gpu else 4)
    max_seq_len = c.max_seq_len or (2048 if on_gpu else 512)
    c = dataclasses.replace(
        c,
        run=c.run or f"d{depth}",
        depth=depth,
        head_dim=c.head_dim or (128 if on_gpu else 64),
        max_seq_len=max_seq_len,
        vocab_size=c.vocab_size or (65_536 if on_gpu else 8192),
        tokenizer_chars=c.tokenizer_chars or 2_000_000_000,
        dtype=c.dtype or dtype,
        warmdown_ratio=warmdown_ratio(c, 0.2),
        total_batch_tokens=c.total_batch_tokens
        or (524_288 if on_gpu else max(1, 16_384 // max_seq_len) * max_seq_len),
        validation_tokens=c.validation_tokens or (10_485_760 if on_gpu else 131_072),
    )
    if c.num_steps is None and c.target_flops is None and c.tokens_per_param is None:
        c = dataclasses.replace(c, tokens_per_param=20.0 if on_gpu else 1.0)
    model = model_config(c)
    rows = rows_per_step(c)
    c = dataclasses.replace(
        c, device_batch_size=c.device_batch_size or batch_for(depth, rows, on_gpu)
    )
    check_divides(c.device_batch_size, rows)
    steps = budget(c, model).num_steps
    return dataclasses.replace(
        c,
        validate_every=c.validate_every or min(250, math.ceil(steps / 4)),
    )


def warmdown_ratio(config: RunConfig, usual: float) -> float:
    """Give the part in which the learning rate falls: as asked, or as usual beside a warmup."""
    if config.warmdown_ratio is not None:
        return config.warmdown_ratio
    return min(usual, 1 - config.warmup_ratio)


def check_rows(config: RunConfig, rows: int, most_workers: int) -> None:
    """Raise an InputError if there are more workers than rows in a step."""
    if most_workers > rows:
        raise InputError(
            f"--num-workers {config.num_workers or most_workers} is more than the {rows} rows of a "
            f"step. Give at most {rows}, or a larger --total-batch-tokens."
        )


def check_divides(device_batch_size: int | None, rows: int) -> None:
    """Raise an InputError unless the rows of a step are whole forward passes."""
    assert device_batch_size is not None, "decided"
    if rows % device_batch_size:
        fitting = [str(n) for n in range(1, rows + 1) if rows % n == 0]
        raise InputError(
            f"--device-batch-size {device_batch_size} does not divide the {rows} rows of a step "
            f"(--total-batch-tokens by --max-seq-len). Choose one of {', '.join(fitting)}."
        )


def batch_for(depth: int, rows: int, on_gpu: bool) -> int:
    """Choose rows per forward pass: what 80 GB hold (nanochat), or what a CPU's caches like."""
    wanted = (
        8
        if not on_gpu
        else next(b for d, b in ((20, 32), (26, 16), (32, 8), (10**9, 4)) if depth <= d)
    )
    return max(b for b in range(1, wanted + 1) if rows % b == 0)


def rows_per_step(config: PretrainConfig) -> int:
    """Count the rows of T tokens in a step of a decided config."""
    return rows_of_batch(config.total_batch_tokens, config.max_seq_len)


def rows_of_batch(total: int | None, T: int | None) -> int:
    """Count the rows of T tokens in a batch.

    Raises:
        InputError: the batch is no whole number of rows.
    """
    assert total is not None, "decided"
    assert T is not None, "decided"
    if total % T:
        raise InputError(
            f"--total-batch-tokens {total} is not a multiple of --max-seq-len {T}. "
            f"The next one up is {math.ceil(total / T) * T}."
        )
    return total // T


def model_config(config: PretrainConfig) -> GPTConfig:
    """Derive the model of a decided config."""
    assert config.depth, "decided"
    assert config.vocab_size, "decided"
    assert config.head_dim, "decided"
    assert config.max_seq_len, "decided"
    return gpt_config(
        config.depth,
        config.vocab_size,
        head_dim=config.head_dim,
        max_seq_len=config.max_seq_len,
        embedding_dtype=config.embedding_dtype,
    )


def budget(config: PretrainConfig, model: GPTConfig) -> TrainingBudget:
    """Derive the length of a decided config's run."""
    assert config.total_batch_tokens, "decided"
    return training_budget(
        model,
        config.total_batch_tokens,
        num_steps=config.num_steps,
        target_flops=config.target_flops,
        tokens_per_param=config.tokens_per_param,
    )


def checkpoint_bytes(model: GPTConfig) -> int:
    """Say how large a checkpoint is: fp32 weights, Muon's momentum, AdamW's two averages."""
    embeddings = 2 * model.vocab_size * model.model_dim
    return 4 * (2 * num_parameters(model) + embeddings)


def most_checkpoints(config: RunConfig, num_steps: int, waiting: int = 0) -> int:
    """Count the checkpoints that a stage has in its storage at most, while one more is written.

    Multiples of `keep_every` are kept where they are saved: without `save_every` few of them are,
    and they are not counted.

    Args:
        config: what is kept of those that are saved.
        num_steps: length of the stage.
        waiting: that are kept until they are evaluated.
    """
    both = math.lcm(config.keep_every or 0, config.save_every or 0)  # 0 where one is missing
    multiples = num_steps // both if both else 0
    asked_for = sum(step <= num_steps for step in set(config.save_at))
    return config.keep_last + 1 + multiples + asked_for + waiting


def rates(config: RunConfig, model: GPTConfig, fraction: float = 1.0) -> LearningRates:
    """Derive the learning rates; a stage after the first takes a fraction of them."""
    return learning_rates(
        model,
        matrix=fraction * config.matrix_lr,
        embedding=fraction * config.embedding_lr,
        unembedding=fraction * config.unembedding_lr,
    )


def optimizer_config(config: RunConfig, model: GPTConfig, fraction: float = 1.0) -> OptimizerConfig:
    """Give the optimizer its hyperparameters."""
    lr = rates(config, model, fraction)
    return OptimizerConfig(
        matrix_lr=lr.matrix,
        embedding_lr=lr.embedding,
        unembedding_lr=lr.unembedding,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip or None,
        newton_schulz_dtype=config.newton_schulz_dtype,
    )


def schedule(
    config: RunConfig, num_steps: int, momentum_start: float = Schedule.momentum_start
) -> Schedule:
    """Give the schedule of a decided config over a stage of `num_steps`."""
    assert config.warmdown_ratio is not None, "decided"
    return Schedule(
        num_steps=num_steps,
        warmup_ratio=config.warmup_ratio,
        warmdown_ratio=config.warmdown_ratio,
        final_lr_fraction=config.final_lr_fraction,
        momentum_start=momentum_start,
    )


def validation_rows(config: PretrainConfig) -> int:
    """Count the rows of validation text that are used."""
    assert config.validation_tokens, "decided"
    assert config.max_seq_len, "decided"
    return max(1, config.validation_tokens // config.max_seq_len)
