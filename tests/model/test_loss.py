import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoray.model.loss import (
    CPU_CHUNK_TOKENS,
    FusedCrossEntropy,
    SoftCap,
    chunk_tokens,
    log_total,
    logits_grad,
    nats_and_grad,
    soft_cap,
    token_nats,
)
from nanoray.text.chat import IGNORE_INDEX

CAP = SoftCap(15.0, rounded=False)
V, D = 50, 16

fused: Callable[..., Tensor] = FusedCrossEntropy.apply


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the summed loss and both gradients in float64 by torch's own functions."""
    hidden = hidden.detach().double().requires_grad_()
    weight = weight.detach().double().requires_grad_()
    capped = 15 * torch.tanh(hidden @ weight.T / 15)
    loss = F.cross_entropy(capped, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    hidden_grad, weight_grad = torch.autograd.grad(loss, (hidden, weight))
    return loss.detach(), hidden_grad, weight_grad


def random_case(
    N: int, scale: float = 1.0, ignored: float = 0.2, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw hidden states (N, D), an unembedding (V, D) and targets (N,), some without a loss."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(N, D, generator=generator)
    weight = torch.randn(V, D, generator=generator)
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORE_INDEX
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def assert_close(actual: Tensor, expected: Tensor, relative: float) -> None:
    """Compare with the largest value as the scale: small entries are sums of large ones."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, atol=relative * scale, rtol=0.0)


@pytest.mark.parametrize(
    "N",
    [1, 2, CPU_CHUNK_TOKENS - 1, CPU_CHUNK_TOKENS, CPU_CHUNK_TOKENS + 1, 2 * CPU_CHUNK_TOKENS + 7],
)
def test_loss_and_gradients_are_those_of_torch_at_every_border_of_chunks(N: int) -> None:
    hidden, weight, targets = random_case(N)

    loss = fused(hidden, weight, targets, CAP, logits_grad)
    loss.backward()

    expected, hidden_grad, weight_grad = reference(hidden, weight, targets)
    assert hidden.grad is not None
    assert weight.grad is not None
    # fp32: 6e-8 per operation, and sums of up to a thousand terms.
    assert_close(loss.detach(), expected, 1e-6)
    assert_close(hidden.grad, hidden_grad, 2e-6)
    assert_close(weight.grad, weight_grad, 2e-6)


@pytest.mark.parametrize("scale", [0.01, 10.0, 1000.0, 1e6])
def test_logits_of_any_size_are_bounded(scale: float) -> None:
    hidden, weight, targets = random_case(100, scale)

    loss = fused(hidden, weight, targets, CAP, logits_grad)
    loss.backward()

    expected, hidden_grad, weight_grad = reference(hidden, weight, targets)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert_close(loss.detach(), expected, 1e-6)
    # 1 - tanh^2 of a saturated logit is a difference of numbers near 1: exact to 1e-7 of the
    # unsaturated gradient, which is 1, and no better.
    torch.testing.assert_close(hidden.grad.double(), hidden_grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weight.grad.double(), weight_grad, atol=1e-5 * scale, rtol=1e-5)


def test_gradients_are_scaled_by_what_is_done_with_the_loss() -> None:
    hidden, weight, targets = random_case(30)
    other, other_weight, _ = random_case(30)

    (3 * fused(hidden, weight, targets, CAP, logits_grad) / 7).backward()
    fused(other, other_weight, targets, CAP, logits_grad).backward()

    assert other.grad is not None
    assert other_weight.grad is not None
    torch.testing.assert_close(hidden.grad, 3 / 7 * other.grad)
    torch.testing.assert_close(weight.grad, 3 / 7 * other_weight.grad)


def test_gradients_of_microbatches_add_up() -> None:
    hidden, weight, targets = random_case(40)
    whole = torch.autograd.grad(fused(hidden, weight, targets, CAP, logits_grad), weight)[0]

    for part in (slice(0, 25), slice(25, 40)):
        fused(hidden[part], weight, targets[part], CAP, logits_grad).backward()

    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, whole)


def test_a_target_without_loss_has_no_gradient() -> None:
    hidden, weight, targets = random_case(20, ignored=0.5)

    fused(hidden, weight, targets, CAP, logits_grad).backward()

    assert hidden.grad is not None
    ignored = targets == IGNORE_INDEX
    assert 0 < ignored.sum() < 20
    assert not hidden.grad[ignored].any()
    assert hidden.grad[~ignored].any(dim=-1).all()


def test_a_batch_without_a_single_target_has_loss_zero() -> None:
    hidden, weight, targets = random_case(20, scale=1000.0)
    targets.fill_(IGNORE_INDEX)

    loss = fused(hidden, weight, targets, CAP, logits_grad)
    loss.backward()

    assert loss.item() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert torch.equal(hidden.grad, torch.zeros(20, D))
    assert torch.equal(weight.grad, torch.zeros(V, D))


def test_losses_of_tokens_are_those_of_torch() -> None:
    hidden, weight, targets = random_case(100, scale=3.0)
    logits = (hidden @ weight.T).detach()

    nats = token_nats(logits, targets, CAP, log_total(logits, CAP))
    nats_with_grad, _ = nats_and_grad(logits, targets, CAP, logits_grad)

    capped = 15 * torch.tanh(logits.double() / 15)
    expected = F.cross_entropy(capped, targets, ignore_index=IGNORE_INDEX, reduction="none")
    # fp32 logits of up to 15 are exact to 1e-6.
    torch.testing.assert_close(nats.double(), expected, atol=4e-6, rtol=0.0)
    torch.testing.assert_close(nats_with_grad, nats, atol=4e-6, rtol=0.0)


@pytest.mark.parametrize("margin", [2.0, 6.0, 10.0, 14.9])
def test_a_confident_prediction_still_learns_in_bf16(margin: float) -> None:
    logits = torch.zeros(1, V)
    logits[0, 7] = 15 * math.atanh(margin / 15)
    logits = logits.bfloat16()

    _, grad = nats_and_grad(logits, torch.tensor([7]), CAP, logits_grad)

    exact = logits.double().requires_grad_()
    loss = F.cross_entropy(15 * torch.tanh(exact / 15), torch.tensor([7]))
    (expected,) = torch.autograd.grad(loss, exact)
    # bf16 keeps 8 bits of each value: 2^-9 relative after rounding. At a margin of 14.9 the target
    # has p = 1 - 1.7e-5, which rounds to 1 in bf16, and fp32 logs are exact to 1e-6: hence 0.1.
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        grad.double(), expected, rtol=0.1 if margin > 14 else 2**-7, atol=1e-8
    )
    assert grad[0, 7] < 0


def test_in_bf16_loss_and_gradients_are_those_of_the_rounded_logits() -> None:
    hidden, weight, targets = random_case(600, scale=0.5)
    half = hidden.detach().bfloat16().requires_grad_()
    half_weight = weight.detach().bfloat16().float().requires_grad_()

    loss = fused(half, half_weight, targets, CAP, logits_grad)
    loss.backward()

    expected, hidden_grad, weight_grad = reference(half, half_weight, targets)
    assert half.grad is not None
    assert half_weight.grad is not None
    assert (half.grad.dtype, half_weight.grad.dtype) == (torch.bfloat16, torch.float32)
    # bf16: 2^-9 = 0.2 % for each logit, each entry of its gradient and each result.
    assert_close(loss.detach(), expected, 1e-3)
    assert_close(half.grad, hidden_grad, 1e-2)
    assert_close(half_weight.grad, weight_grad, 1e-2)


def test_the_soft_cap_is_a_tanh_of_its_limit() -> None:
    logits = torch.linspace(-200, 200, 4001)

    capped, tanh = soft_cap(logits, SoftCap(7.0, rounded=False))

    expected = torch.tanh(logits.double() / 7)
    torch.testing.assert_close(tanh.double(), expected, atol=3e-7, rtol=0.0)
    torch.testing.assert_close(capped.double(), 7 * expected, atol=2e-6, rtol=0.0)


def test_the_soft_cap_bounds_infinite_logits_too() -> None:
    logits = torch.tensor([-math.inf, -1e30, 0.0, 1e30, math.inf])

    capped, _ = soft_cap(logits, CAP)

    assert capped.tolist() == [-15, -15, 0, 15, 15]


def test_capped_logits_are_rounded_to_bf16_where_d34_did_it() -> None:
    logits = (20 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).bfloat16()

    rounded, _ = soft_cap(logits, SoftCap(15.0, rounded=True))
    exact, _ = soft_cap(logits, CAP)

    assert rounded.dtype == exact.dtype == torch.float32
    assert torch.equal(rounded, (15 * torch.tanh(logits.float() / 15)).bfloat16().float())
    assert not torch.equal(rounded, exact)


def test_chunks_on_a_cpu_have_a_fixed_number_of_tokens() -> None:
    count = chunk_tokens(torch.empty(V, D), torch.empty(10_000, D))

    assert count == CPU_CHUNK_TOKENS


def test_factors_multiply_the_loss_of_each_token_and_its_gradient() -> None:
    N = CPU_CHUNK_TOKENS + 5
    hidden, weight, targets = random_case(N)
    factors = torch.randn(N, generator=torch.Generator().manual_seed(1))  # of either sign, as in RL
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    nats = F.cross_entropy(
        15 * torch.tanh(h @ w.T / 15), targets, ignore_index=IGNORE_INDEX, reduction="none"
    )
    expected = (nats * factors.double()).sum()
    expected_grads = torch.autograd.grad(expected, (h, w))

    loss = fused(hidden, weight, targets, CAP, logits_grad, factors)
    grads = torch.autograd.grad(loss, (hidden, weight))

    torch.testing.assert_close(loss.double(), expected.detach(), atol=2e-3, rtol=1e-6)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert_close(grad, wanted, relative=1e-5)


def test_a_factor_of_zero_teaches_nothing() -> None:
    hidden, weight, targets = random_case(9)

    fused(hidden, weight, targets, CAP, logits_grad, torch.zeros(9)).backward()

    assert hidden.grad is not None
    assert not hidden.grad.any()
