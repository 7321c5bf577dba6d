"""Trials whose loss is known: a law with chosen constants, and noise."""

from typing import Any

import numpy as np

from nanoray.model.scaling import flops_per_token, gpt_config, num_parameters, training_budget
from nanoray.ops.scaling_law import Array, Points
from nanoray.ops.trial_table import Status, TrialRow

CHINCHILLA = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
"""Hoffmann et al. 2022, approach 3."""
BESIROGLU = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
"""Their data, fitted anew: Besiroglu et al. 2024."""
SMALL = {"E": 0.45, "A": 20.0, "alpha": 0.28, "B": 30.0, "beta": 0.28}
"""In bits per byte, of the size that small sweeps have."""


def six(size: Array) -> Array:
    """Give FLOPs per token without attention."""
    return 6 * size


def loss_of(law: dict[str, float], size: Array, tokens: Array) -> Array:
    """Give the loss by a law."""
    found: Array = law["E"] + law["A"] / size ** law["alpha"] + law["B"] / tokens ** law["beta"]
    return found


def best_size_of(law: dict[str, float], budgets: Array) -> Array:
    """Give N*(C) where C = 6 N D (Hoffmann et al. 2022, equation 4)."""
    a, b = law["alpha"], law["beta"]
    ratio = a * law["A"] / (b * law["B"])
    found: Array = ratio ** (1 / (a + b)) * (budgets / 6) ** (b / (a + b))
    return found


def equal_flops(
    law: dict[str, float], budgets: Array, sizes: Array, *, noise: float = 0.0, seed: int = 0
) -> Points:
    """Give every size at every budget."""
    flops, size = np.repeat(budgets, len(sizes)), np.tile(sizes, len(budgets))
    return with_noise(law, size, flops / (6 * size), noise, seed)


def equal_ratios(
    law: dict[str, float], sizes: Array, ratios: Array, *, noise: float = 0.0, seed: int = 0
) -> Points:
    """Give every size at every ratio."""
    size = np.repeat(sizes, len(ratios))
    return with_noise(law, size, size * np.tile(ratios, len(sizes)), noise, seed)


def with_noise(
    law: dict[str, float], size: Array, tokens: Array, noise: float, seed: int
) -> Points:
    """Give trials whose loss deviates from the law by some part."""
    rng = np.random.default_rng(seed)
    loss = loss_of(law, size, tokens) * np.exp(noise * rng.standard_normal(len(size)))
    return Points(size, tokens, 6 * size * tokens, loss)


def trials(
    depths: list[int],
    *,
    ratios: list[float] | None = None,
    flops: list[float] | None = None,
    on_gpu: bool = False,
    noise: float = 0.002,
    **fields: object,
) -> list[TrialRow]:
    """Give the table of a sweep by ratios or by FLOPs, by the law `SMALL`."""
    rng = np.random.default_rng(1)
    vocab, length, head, batch = (65_536, 2048, 128, 524_288) if on_gpu else (8192, 512, 64, 16_384)
    rows: list[TrialRow] = []
    for depth in depths:
        model = gpt_config(depth, vocab, head_dim=head, max_seq_len=length)
        params, embedding = num_parameters(model), vocab * model.model_dim
        per_token = flops_per_token(model)
        horizons: list[dict[str, Any]] = [{"tokens_per_param": r} for r in ratios or []]
        horizons += [{"target_flops": f} for f in flops or []]
        for horizon in horizons:
            budget = training_budget(model, batch, **horizon)
            loss = loss_of(SMALL, np.array([params - embedding]), np.array([budget.tokens]))[0]
            known = {
                "name": f"d{depth}-r{budget.tokens_per_param:.3g}-s42-{len(rows):08x}",
                "status": Status.DONE,
                "depth": depth,
                "tokens_per_param": budget.tokens_per_param,
                "seed": 42,
                "parameters": params,
                "embedding_parameters": embedding,
                "unembedding_parameters": embedding,
                "matrix_parameters": params - 2 * embedding,
                "vocab_size": vocab,
                "max_seq_len": length,
                "head_dim": head,
                "total_batch_tokens": batch,
                "num_steps": budget.num_steps,
                "tokens": budget.tokens,
                "flops_per_token": per_token,
                "flops": budget.flops,
                "bits_per_byte": float(loss * np.exp(noise * rng.standard_normal())),
                "device": "NVIDIA H100 80GB HBM3" if on_gpu else "cpu",
                "num_workers": 8 if on_gpu else 2,
                "tokens_per_second": (8 * 0.42e15 if on_gpu else 2e11) / per_token,
            }
            rows.append(TrialRow(**{**known, **fields}))  # type: ignore[arg-type]  # of many types
    return rows
