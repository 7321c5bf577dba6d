"""Keys and values of tokens that were computed before, in blocks, and attention over them.

The cache is one pool of blocks. A sequence owns some of them, in any order; its block table says
which. Who owns what is decided elsewhere (inference/blocks.py): here a table is a row of numbers.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Several tokens of one sequence that are computed together."""

    start: int
    end: int
    """Its rows of the pass."""
    first_position: int
    """How many tokens of the sequence come before."""
    blocks: Tensor
    """Blocks of the sequence up to the span's last token, (num_blocks,) int64."""


@dataclass(frozen=True)
class CacheLayout:
    """Where the N tokens of one forward pass stand.

    First come `tables.size(0)` single tokens, each of a sequence of its own, then the spans.
    """

    positions: Tensor
    """Position of each token in its sequence, (N,) int64."""
    slots: Tensor
    """Where in the pool its key and value go, block * block_size + offset, (N,) int64."""
    tables: Tensor
    """Blocks of each single token's sequence, (S, M) int64; unused places hold block 0."""
    spans: tuple[Span, ...] = ()


class KVCache:
    """A pool of keys and values, zero where nothing was written."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the pool; `shape` is (L, K, E)."""
        L, K, E = shape
        self.block_size = block_size
        self.pool = torch.zeros((L, 2, num_blocks, block_size, K, E), dtype=dtype, device=device)

    def clear(self, blocks: list[int]) -> None:
        """Zero blocks before they get a new owner.

        Attention multiplies what it masks by 0, and 0 * NaN is NaN: a sequence whose numbers have
        overflowed must not reach the next owner of its blocks.
        """
        self.pool[:, :, torch.tensor(blocks, device=self.pool.device)] = 0

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store keys and values, (N, K, E) each, at their slots, (N,)."""
        for kind, new in enumerate((k, v)):
            self.pool[layer, kind].flatten(0, 1).index_copy_(0, slots, new)

    def attend(self, layer: int, q: Tensor, layout: CacheLayout, window: int | None) -> Tensor:
        """Let each token attend to all of its sequence up to itself: (N, H, E) -> (N, H, E)."""
        S = layout.tables.size(0)
        keys, values = self.pool[layer, 0], self.pool[layer, 1]  # (num_blocks, block, K, E)
        parts = []
        if S:
            k, v = (take(pool, layout.tables) for pool in (keys, values))  # (S, M * block, K, E)
            parts.append(attend_last(q[:S], k, v, layout.positions[:S], window))
        for span in layout.spans:
            k, v = (take(pool, span.blocks[None])[0] for pool in (keys, values))
            num_keys = span.first_position + span.end - span.start
            part = q[span.start : span.end]
            parts.append(attend_span(part, k[:num_keys], v[:num_keys], window))
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def attend_last(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """Attend from the last token of each of S sequences: (S, H, E) -> (S, H, E).

    Args:
        q: (S, H, E).
        k: (S, T, K, E), of which the sequence's own are those up to its position.
        v: (S, T, K, E).
        positions: of the last tokens, (S,).
        window: how many earlier tokens each token sees besides itself; None for all.
    """
    key = torch.arange(k.size(1), device=k.device)[None, :]  # (1, T)
    allowed = key <= positions[:, None]
    if window is not None:
        allowed = allowed & (positions[:, None] - key <= window)
    if q.device.type == "cpu":
        return products_last(q, k, v, allowed)
    mixed = F.scaled_dot_product_attention(
        q[:, :, None, :],  # (S, H, 1, E)
        k.transpose(1, 2),  # (S, K, T, E)
        v.transpose(1, 2),
        attn_mask=allowed[:, None, None, :],
        enable_gqa=q.size(1) != k.size(2),
    )
    return mixed[:, :, 0]


def products_last(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Do the same by plain products, where `allowed`, (S, T), says what each token sees.

    On a CPU torch's kernel takes more than twice as long for a single query.
    """
    S, H, E = q.shape
    grouped = q.view(S, k.size(2), -1, E)  # (S, K, H/K, E)
    scores = (grouped @ k.permute(0, 2, 3, 1)).float() / math.sqrt(E)  # (S, K, H/K, T)
    weights = scores.masked_fill(~allowed[:, None, None, :], -torch.inf).softmax(-1)
    return (weights.to(v.dtype) @ v.transpose(1, 2)).view(S, H, E)


def take(pool: Tensor, tables: Tensor) -> Tensor:
    """Copy the tokens of some tables out of a pool: (S, M) blocks -> (S, M * block, K, E)."""
    taken = pool.index_select(0, tables.flatten())  # five times as fast as indexing, on a CPU
    return taken.view(tables.size(0), -1, *pool.shape[2:])


def attend_span(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend from the last tokens of one sequence: (Tq, H, E) -> (Tq, H, E).

    Args:
        q: (Tq, H, E).
        k: (T, K, E) of the whole sequence, the Tq tokens last.
        v: (T, K, E).
        window: how many earlier tokens each token sees besides itself; None for all.
    """
    T, Tq = k.size(0), q.size(0)
    allowed = None
    if Tq != T or window is not None:
        query = torch.arange(T - Tq, T, device=q.device)[:, None]
        key = torch.arange(T, device=q.device)[None, :]
        allowed = key <= query
        if window is not None:
            allowed = allowed & (query - key <= window)
    mixed = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],  # (1, H, Tq, E)
        k.transpose(0, 1)[None],  # (1, K, T, E)
        v.transpose(0, 1)[None],
        attn_mask=allowed,
        is_causal=allowed is None,  # without a mask, kernels skip what no token sees
        enable_gqa=q.size(1) != k.size(1),
    )
    return mixed[0].transpose(0, 1)


def cache_bytes_per_token(shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Give the bytes of keys and values of one token in all layers; `shape` is (L, K, E)."""
    return 2 * math.prod(shape) * dtype.itemsize
