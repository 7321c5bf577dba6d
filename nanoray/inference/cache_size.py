"""How large the KV cache of an engine may be: what is asked for, or what the device has left."""

import psutil
import torch

from nanoray.config import InputError
from nanoray.inference.engine import EngineConfig
from nanoray.model.gpt import GPT
from nanoray.model.kv_cache import cache_bytes_per_token

SHARE_OF_FREE_GPU = 0.85
"""The rest is for logits and whatever else a step needs."""
SHARE_OF_FREE_RAM = 0.25
"""Other processes live there too."""


def blocks_that_fit(
    model: GPT,
    max_sequences: int,
    cache_gb: float | None = None,
    context_tokens: int | None = None,
) -> int:
    """Give the number of blocks for as many full sequences as are wanted, if they fit.

    A full one has `context_tokens`, or where that is None as many as a row of training.

    Raises:
        InputError: not even one sequence of full length fits.
    """
    config, size = model.config, EngineConfig.block_size
    shape = (config.num_layers, config.num_kv_heads, config.head_dim)
    block_bytes = size * cache_bytes_per_token(shape, model.compute_dtype)
    context = context_tokens or config.max_seq_len
    blocks_per_sequence = -(-context // size)
    wanted = 1 + max_sequences * blocks_per_sequence
    room = free_bytes(model.unembedding.weight.device) if cache_gb is None else cache_gb * 1e9
    fitting = int(room // block_bytes)
    if fitting <= blocks_per_sequence:
        raise InputError(
            f"A KV cache of {room / 1e9:.2f} GB holds {max(fitting, 0) * size} tokens, and one "
            f"sequence has {context}. Give --cache-gb "
            f"{(blocks_per_sequence + 1) * block_bytes / 1e9:.2f} or more, or free memory."
        )
    return min(wanted, fitting)


def free_bytes(device: torch.device) -> float:
    """Give how much of a device's memory a cache may take."""
    if device.type == "cuda":
        return SHARE_OF_FREE_GPU * torch.cuda.mem_get_info(device)[0]
    return SHARE_OF_FREE_RAM * psutil.virtual_memory().available
