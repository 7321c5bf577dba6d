import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoray.model.attention import blocked_attention, causal_attention, causal_mask

LENGTHS = [1, 5, 127, 128, 129, 260]
"""Within a block of queries, at its borders, and over several, the last one not full."""
WINDOWS = [None, 0, 1, 16, 127, 128, 200, 1000]


def naive_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attend in float64, all scores at once, with nothing but the formula."""
    q, k, v = q.double(), k.double(), v.double()
    seen = range(window + 1) if window is not None else range(q.size(2))
    allowed = torch.tensor([[t - s in seen for s in range(q.size(2))] for t in range(q.size(2))])
    heads = []
    for head in range(q.size(1)):
        kv_head = head * k.size(1) // q.size(1)
        scores = q[:, head] @ k[:, kv_head].mT / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~allowed, -math.inf)
        exp = torch.exp(scores - scores.amax(-1, keepdim=True))
        heads.append(exp / exp.sum(-1, keepdim=True) @ v[:, kv_head])
    return torch.stack(heads, dim=1)


def random_qkv(T: int, H: int = 2, K: int = 2, scale: float = 1.0) -> tuple[Tensor, ...]:
    """Draw queries, keys and values for two rows of T tokens."""
    generator = torch.Generator().manual_seed(T)
    return tuple(
        (scale * torch.randn(2, heads, T, 16, generator=generator)).requires_grad_()
        for heads in (H, K, K)
    )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("T", LENGTHS)
def test_blocks_give_what_the_formula_gives(T: int, window: int | None) -> None:
    q, k, v = random_qkv(T)

    mixed = blocked_attention(q, k, v, window)

    # fp32 sums of up to 300 terms of size 1: a few 1e-7 each.
    torch.testing.assert_close(
        mixed.double(), naive_attention(q, k, v, window), atol=2e-6, rtol=0.0
    )


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (4, 1), (6, 3)])
@pytest.mark.parametrize("window", [None, 20, 139])
def test_each_kv_head_serves_its_group_of_query_heads(
    H: int, K: int, window: int | None, in_blocks: bool
) -> None:
    q, k, v = random_qkv(140, H, K)

    mixed = causal_attention(q, k, v, window, in_blocks=in_blocks)

    torch.testing.assert_close(
        mixed.double(), naive_attention(q, k, v, window), atol=2e-6, rtol=0.0
    )


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize("window", [None, 16, 140])
@pytest.mark.parametrize("T", [129, 150])
def test_gradients_are_those_of_the_formula(T: int, window: int | None, K: int) -> None:
    q, k, v = random_qkv(T, K=K)
    weights = torch.randn(2, 2, T, 16, generator=torch.Generator().manual_seed(1))

    grads = torch.autograd.grad((blocked_attention(q, k, v, window) * weights).sum(), (q, k, v))

    naive = (naive_attention(q, k, v, window) * weights).sum()
    for grad, expected in zip(grads, torch.autograd.grad(naive, (q, k, v)), strict=True):
        # Keys and values of the first tokens collect gradients of T queries.
        torch.testing.assert_close(grad, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("T", LENGTHS)
def test_both_ways_on_a_cpu_give_what_torch_gives(T: int) -> None:
    q, k, v = random_qkv(T)

    in_one, in_blocks = (causal_attention(q, k, v, in_blocks=way) for way in (False, True))

    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(in_one, expected, atol=2e-6, rtol=0.0)
    torch.testing.assert_close(in_blocks, expected, atol=2e-6, rtol=0.0)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_in_bf16_each_product_is_rounded_once(in_blocks: bool) -> None:
    q, k, v = (tensor.detach().bfloat16() for tensor in random_qkv(200))

    mixed = causal_attention(q, k, v, in_blocks=in_blocks)

    # Scores, weights and results, of sizes up to 4, are rounded to 8 bits once each: 4 * 2^-8.
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), naive_attention(q, k, v), atol=0.02, rtol=0.0)


def test_scores_beyond_the_range_of_exp_do_not_overflow() -> None:
    q, k, v = random_qkv(150, scale=100.0)

    mixed = blocked_attention(q, k, v)

    assert mixed.isfinite().all()
    torch.testing.assert_close(mixed.double(), naive_attention(q, k, v), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("window", [None, 16])
def test_the_future_has_no_influence(window: int | None, in_blocks: bool) -> None:
    q, k, v = (tensor.detach() for tensor in random_qkv(200))
    changed_k, changed_v = k.clone(), v.clone()
    changed_k[:, :, 140:] *= 100
    changed_v[:, :, 140:] = 1e9

    mixed = causal_attention(q, k, v, window, in_blocks=in_blocks)
    changed = causal_attention(q, changed_k, changed_v, window, in_blocks=in_blocks)

    assert torch.equal(mixed[:, :, :140], changed[:, :, :140])
    assert (mixed[:, :, 140:] != changed[:, :, 140:]).all()


def test_a_mask_of_later_queries_is_the_lower_part_of_the_whole_mask() -> None:
    whole = causal_mask(0, 10, 10, 3, torch.device("cpu"))

    part = causal_mask(4, 8, 8, 3, torch.device("cpu"))

    assert torch.equal(part, whole[4:8, :8])
    assert whole.sum(-1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize("window", [None, 40])
def test_texts_in_one_row_do_not_see_each_other(in_blocks: bool, window: int | None) -> None:
    q, k, v = random_qkv(260)
    borders = [0, 3, 128, 259, 260]
    texts = torch.zeros(2, 260, dtype=torch.long)
    for number, start in enumerate(borders[:-1]):
        texts[:, start:] = number

    mixed = causal_attention(q, k, v, window, texts=texts, in_blocks=in_blocks)

    alone = [
        naive_attention(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], window)
        for a, b in itertools.pairwise(borders)
    ]
    torch.testing.assert_close(mixed.double(), torch.cat(alone, dim=2), atol=2e-6, rtol=0.0)
