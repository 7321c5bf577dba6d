"""Attention over blocks against attention over plain rows, in any order of blocks."""

import pytest
import torch
from torch import Tensor

from nanoray.model.attention import causal_attention
from nanoray.model.kv_cache import CacheLayout, KVCache, Span, cache_bytes_per_token

BLOCK, E = 4, 16


def random_rows(T: int, H: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    return tuple(torch.randn(T, heads, E, generator=generator) for heads in (H, K, K))  # type: ignore[return-value]


def make_cache(K: int) -> KVCache:
    return KVCache((2, K, E), 40, BLOCK, torch.float32, torch.device("cpu"))


def attend_in_full(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attend from all tokens of one sequence, (T, H, E), without a cache."""
    q, k, v = q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None]
    return causal_attention(q, k, v, window)[0].transpose(0, 1)


def slots(blocks: list[int], T: int) -> Tensor:
    return torch.tensor([blocks[t // BLOCK] * BLOCK + t % BLOCK for t in range(T)])


@pytest.mark.parametrize("window", [None, 0, 3, 100])
@pytest.mark.parametrize("H", [2, 4])
def test_each_token_attends_to_its_own_past_whatever_blocks_hold_it(H: int, window: int | None):
    lengths, K = [1, 4, 5, 11], 2
    tables = [[7], [30], [9, 3], [5, 39, 1]]
    rows = [random_rows(T, H, K) for T in lengths]
    cache = make_cache(K)
    for (_, k, v), blocks, T in zip(rows, tables, lengths, strict=True):
        cache.write(1, slots(blocks, T), k, v)
    last = torch.tensor([T - 1 for T in lengths])
    padded = torch.tensor([table + [0] * (3 - len(table)) for table in tables])
    q = torch.stack([q[-1] for q, _, _ in rows])

    mixed = cache.attend(1, q, CacheLayout(last, last, padded), window)

    for row, (q, k, v) in enumerate(rows):
        expected = attend_in_full(q, k, v, window)[-1]
        torch.testing.assert_close(mixed[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 0, 3, 100])
@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_the_last_tokens_of_a_sequence_attend_as_in_a_full_pass(first: int, window: int | None):
    T, H, K, blocks = 11, 4, 2, [8, 2, 6]
    q, k, v = random_rows(T, H, K)
    cache = make_cache(K)
    cache.write(0, slots(blocks, T), k, v)
    span = Span(0, T - first, first, torch.tensor(blocks))
    positions = torch.arange(first, T)
    layout = CacheLayout(positions, positions, torch.empty(0, 0, dtype=torch.int64), (span,))

    mixed = cache.attend(0, q[first:], layout, window)

    full = attend_in_full(q, k, v, window)
    torch.testing.assert_close(mixed, full[first:], rtol=1e-5, atol=1e-5)


def test_cleared_blocks_hold_nothing_in_any_layer() -> None:
    cache = make_cache(1)
    cache.pool.fill_(torch.nan)

    cache.clear([3, 5])

    cleared = cache.pool[:, :, [3, 5]]
    assert torch.equal(cleared, torch.zeros_like(cleared))
    assert cache.pool[:, :, 4].isnan().all()


def test_layers_keep_apart() -> None:
    cache = make_cache(1)

    cache.write(1, torch.tensor([9]), torch.ones(1, 1, E), torch.full((1, 1, E), 2.0))

    assert not cache.pool[0].any()
    assert cache.pool[1, :, 2, 1, 0, 0].tolist() == [1.0, 2.0]


def test_d34_needs_289_kib_for_each_token() -> None:
    needed = cache_bytes_per_token((34, 17, 128), torch.bfloat16)

    # 34 layers, width 2176; serving.md, section 2.
    assert needed == 289 * 1024
