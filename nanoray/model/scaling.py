"""The one dial: what follows from the depth of a model, and from how long it is trained.

All functions are pure; `jobs/plan.py` prints what they give. Sources: nanochat (d34), unless named.
"""

import math
from dataclasses import dataclass

from nanoray.config import InputError
from nanoray.model.gpt import GPTConfig

WIDTH_PER_LAYER = 64
MOST_LAYERS, MOST_TOKENS = 10_000, 10**18
"""Far above what anybody trains, and below where numbers overflow."""
REFERENCE_DIM = 768
"""Width at which the learning rates of embedding and unembedding were tuned."""


@dataclass(frozen=True)
class TrainingBudget:
    """How long a run is."""

    num_steps: int
    tokens: int
    """Targets in all steps."""
    flops: float
    """Forward and backward, as `flops_per_token` counts them."""
    tokens_per_param: float


@dataclass(frozen=True)
class LearningRates:
    """Base rates of the three parameter groups."""

    matrix: float
    embedding: float
    unembedding: float


def gpt_config(
    depth: int,
    vocab_size: int,
    *,
    head_dim: int,
    max_seq_len: int,
    embedding_dtype: str = "float32",
) -> GPTConfig:
    """Derive the model's shape from its depth: width 64 per layer, heads of `head_dim`.

    Raises:
        InputError: no depth or too much of it, or a width that the head dimension does not divide.
    """
    if depth < 1:
        raise InputError(f"--depth {depth} has no layers. The least is 1.")
    if depth > MOST_LAYERS:
        raise InputError(f"--depth {depth} is more than any model has. The most is {MOST_LAYERS}.")
    if max_seq_len < 1:
        raise InputError(f"--max-seq-len {max_seq_len} has no tokens. The least is 1.")
    width = WIDTH_PER_LAYER * depth
    if head_dim < 1 or width % head_dim:
        fitting = [d for d in (32, 64, 128, 256) if width % d == 0]
        raise InputError(
            f"--head-dim {head_dim} does not divide the width {width} of --depth {depth}. "
            f"Give --head-dim {' or '.join(map(str, fitting))}, or another depth."
        )
    heads = width // head_dim
    return GPTConfig(
        vocab_size=vocab_size,
        max_seq_len=max_seq_len,
        num_layers=depth,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        embedding_dtype=embedding_dtype,
    )


def num_parameters(config: GPTConfig) -> int:
    """Count all weights."""
    D, kv = config.model_dim, config.num_kv_heads * config.head_dim
    block = 2 * D * D + 2 * D * kv + 2 * config.mlp_ratio * D * D
    return 2 * config.vocab_size * D + config.num_layers * block


def flops_per_token(config: GPTConfig) -> float:
    """Count floating-point operations of training on one token.

    6 per weight that multiplies (the embedding only looks up), and 12 H E per layer and token that
    is seen, masked ones counted too.
    """
    embedding = config.vocab_size * config.model_dim
    seen = [config.window(layer) or config.max_seq_len for layer in range(config.num_layers)]
    attention = sum(12 * config.model_dim * min(tokens, config.max_seq_len) for tokens in seen)
    return float(6 * (num_parameters(config) - embedding) + attention)


def training_budget(
    config: GPTConfig,
    total_batch_tokens: int,
    *,
    num_steps: int | None = None,
    target_flops: float | None = None,
    tokens_per_param: float | None = None,
) -> TrainingBudget:
    """Decide how long to train; exactly one of the three horizons is given.

    Raises:
        InputError: none or several horizons, one too short for a single step, or too long.
    """
    given = {
        "--num-steps": num_steps,
        "--target-flops": target_flops,
        "--tokens-per-param": tokens_per_param,
    }
    named = [f"{name} {value}" for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"Give one of {', '.join(given)}, not {' and '.join(named) or 'none'}.")
    if any(isinstance(value, float) and not math.isfinite(value) for value in given.values()):
        raise InputError(f"{named[0]} is not a finite number. Give one.")
    params, flops = num_parameters(config), flops_per_token(config)
    wanted: float = (num_steps or 0) * total_batch_tokens
    wanted = max(wanted, (target_flops or 0) / flops, (tokens_per_param or 0) * params)
    if wanted > MOST_TOKENS:
        raise InputError(f"{named[0]} is more than {MOST_TOKENS:.0e} tokens. Give less.")
    if num_steps is not None:
        steps = num_steps
    elif target_flops is not None:
        steps = round(target_flops / (flops * total_batch_tokens))
    else:
        assert tokens_per_param is not None, "one horizon is given"
        steps = int(tokens_per_param * params) // total_batch_tokens
    if steps < 1:
        raise InputError(
            f"{named[0]} is less than one step of {total_batch_tokens} tokens. Give more."
        )
    tokens = steps * total_batch_tokens
    return TrainingBudget(steps, tokens, tokens * flops, tokens / params)


def learning_rates(
    config: GPTConfig, *, matrix: float, embedding: float, unembedding: float
) -> LearningRates:
    """Scale the rates of embedding and unembedding by (D/768)^-0.5; Muon's needs no scaling."""
    scale = (config.model_dim / REFERENCE_DIM) ** -0.5
    return LearningRates(matrix, embedding * scale, unembedding * scale)


PEAK_BF16_FLOPS = (
    ("gb200", 2.5e15),
    ("b200", 2.25e15),
    ("b100", 1.8e15),
    ("h200 nvl", 836e12),
    ("h200", 989e12),
    ("h100 nvl", 835e12),
    ("h100 pcie", 756e12),
    ("h100", 989e12),
    ("h800", 989e12),
    ("a100", 312e12),
    ("a800", 312e12),
    ("l40s", 362e12),
    ("l40", 181e12),
    ("l4", 121e12),
    ("rtx 5090", 209.5e12),
    ("rtx 4090", 165.2e12),
    ("rtx 3090", 71e12),
)
"""Dense bf16 FLOP/s by a part of the device's name, first match first (vendors' data sheets)."""


TF32_SHARE = 0.5
"""Of the bf16 FLOP/s of a GPU, what it makes with fp32 that is rounded to TF32, which is how
training in float32 multiplies (vendors' data sheets)."""


def gpu_peak_flops(name: str, dtype: str = "bfloat16") -> float | None:
    """Give the peak of a GPU by its name; None for one that is not in the table."""
    peak = next((peak for part, peak in PEAK_BF16_FLOPS if part in name.lower()), None)
    return peak and peak * (TF32_SHARE if dtype == "float32" else 1)
