"""Causal attention, by the fastest means that the device has.

On GPUs torch's fused kernels; on CPUs with matrix units (AMX) torch's flash kernel. On other CPUs
that kernel falls back to slow products (measured: docs/measurements.md), and attention goes block
by block of queries through plain matrix products, which skips most of what the causal mask forbids.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BLOCK_QUERIES = 128
"""Queries per block on CPUs without AMX; 64 and 256 were slower at T=512 (docs/measurements.md)."""


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    *,
    texts: Tensor | None = None,
    in_blocks: bool = False,
) -> Tensor:
    """Attend to the past: softmax(q k^T / sqrt(E)) v under the causal mask.

    Args:
        q: (B, H, T, E).
        k: (B, K, T, E); H is a multiple of K, and each K head serves H/K query heads.
        v: (B, K, T, E).
        window: how many earlier tokens each token sees besides itself; None for all.
        texts: (B, T), the number of the text that each token is of: it sees only that one. None
            for rows that are seen whole.
        in_blocks: on a CPU, go through plain products, as `blocks_are_faster` says.

    Returns:
        (B, H, T, E).
    """
    if in_blocks and q.device.type == "cpu":
        return blocked_attention(q, k, v, window, texts)
    gqa, T = q.size(1) != k.size(1), q.size(2)
    if texts is not None or (window is not None and window < T - 1):
        mask = causal_mask(0, T, T, window, q.device)
        if texts is not None:
            mask = mask & same_text(texts, 0, T, T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)


def fastest_kernels(
    device: torch.device, *, same_shapes: bool = True
) -> AbstractContextManager[None]:
    """Order torch's attention kernels by speed on Hopper, or take the repeatable one if asked to.

    The kernel is chosen when the model is traced, so this stands around a whole forward pass.

    Args:
        device: where the pass runs.
        same_shapes: passes have one shape. cuDNN plans each new one for 50 ms to a second, and so
        is left out where prompts of every length come.
    """
    if device.type != "cuda":
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if same_shapes and not torch.are_deterministic_algorithms_enabled():
        kernels.insert(0, SDPBackend.CUDNN_ATTENTION)
    context: AbstractContextManager[None] = sdpa_kernel(kernels, set_priority=True)
    return context


def blocks_are_faster() -> bool:
    """Say whether this CPU lacks the matrix units on which torch's own kernel depends."""
    return not torch.cpu._is_amx_tile_supported()


def causal_mask(
    start: int, end: int, num_keys: int, window: int | None, device: torch.device
) -> Tensor:
    """Give the mask of queries start..end over keys 0..num_keys, (end - start, num_keys) bool."""
    query = torch.arange(start, end, device=device)[:, None]
    key = torch.arange(num_keys, device=device)[None, :]
    allowed = key <= query
    return allowed if window is None else allowed & (query - key <= window)


def same_text(texts: Tensor, start: int, end: int, num_keys: int) -> Tensor:
    """Give the mask of tokens of one text, (B, 1, end - start, num_keys) bool."""
    return texts[:, None, start:end, None] == texts[:, None, None, :num_keys]


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None = None, texts: Tensor | None = None
) -> Tensor:
    """Do what `causal_attention` does, by plain products over blocks of queries."""
    T, E = q.size(2), q.size(3)
    if q.size(1) != k.size(1):
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        v = v.repeat_interleave(q.size(1) // v.size(1), dim=1)
    blocks = []
    for start in range(0, T, BLOCK_QUERIES):
        end = min(start + BLOCK_QUERIES, T)
        scores = (q[:, :, start:end] @ k[:, :, :end].transpose(-2, -1)).float() / math.sqrt(E)
        allowed = causal_mask(start, end, end, window, q.device)
        if texts is not None:
            allowed = allowed & same_text(texts, start, end, end)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)  # (B, H, block, end)
        blocks.append(weights.to(v.dtype) @ v[:, :, :end])  # (B, H, block, E)
    return torch.cat(blocks, dim=2)
