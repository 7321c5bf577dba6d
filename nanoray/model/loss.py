"""Cross entropy over the vocabulary, without ever holding all logits.

The unembedding, the soft cap and the loss are one operation that goes through the tokens in chunks
and computes the gradient together with the loss: at a vocabulary of 65,536 the logits of a
microbatch and their copies would be the largest tensors of the whole training step.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nanoray.text.chat import IGNORE_INDEX


class SoftCap(NamedTuple):
    """How logits are bounded: limit * tanh(logits / limit)."""

    limit: float
    rounded: bool
    """Round the capped logits to the compute dtype, as d34 did."""


LogitsGrad = Callable[[Tensor, Tensor, SoftCap], tuple[Tensor, Tensor]]

CPU_CHUNK_TOKENS = 512
"""Logits of this many tokens still fit a CPU's cache (docs/measurements.md)."""
GPU_CHUNK_BYTES = 2**30
"""Fewer, larger chunks on GPUs: each one adds a full-size gradient of the unembedding."""


def soft_cap(logits: Tensor, cap: SoftCap) -> tuple[Tensor, Tensor]:
    """Give the capped logits and the tanh in them, both fp32, for logits (..., V) of any dtype."""
    # tanh through exp: the vectorised tanh of CPUs is four times slower, and the difference
    # (1e-7 absolute) is far below what bf16 logits resolve.
    tanh = 1 - 2 / (torch.exp(logits.float() * (2 / cap.limit)) + 1)
    capped = cap.limit * tanh
    return (capped.to(logits.dtype).float() if cap.rounded else capped), tanh


def log_total(logits: Tensor, cap: SoftCap) -> Tensor:
    """Give the log of the sum of exp of the capped logits, (N,) fp32, from logits (N, V)."""
    return soft_cap(logits, cap)[0].exp().sum(-1).log()


def token_nats(logits: Tensor, targets: Tensor, cap: SoftCap, total: Tensor) -> Tensor:
    """Give each token's loss in nats, (N,) fp32, from logits (N, V); 0 where IGNORE_INDEX.

    `total` is what `log_total` gives.
    """
    valid = targets != IGNORE_INDEX
    at = targets.where(valid, 0)[:, None]
    return (total - soft_cap(logits.gather(-1, at), cap)[0][:, 0]) * valid


def logits_grad(logits: Tensor, weight: Tensor, cap: SoftCap) -> tuple[Tensor, Tensor]:
    """Give the log of the sum of exp, (N, 1) fp32, and its gradient for the logits, (N, V).

    Args:
        logits: (N, V), before the soft cap.
        weight: (N, 1) fp32, a factor on each token's gradient.
        cap: how the logits are bounded.
    """
    capped, tanh = soft_cap(logits, cap)
    exp = torch.exp(capped)  # at most e^limit: no maximum has to be subtracted first
    total = exp.sum(-1, keepdim=True)
    grad = exp * (weight / total) * (1 - tanh * tanh)
    return total.log(), grad.to(logits.dtype)


def nats_and_grad(
    logits: Tensor,
    targets: Tensor,
    cap: SoftCap,
    compute: LogitsGrad,
    factors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Give `token_nats`, (N,), and the gradient of their sum for the logits, (N, V).

    With factors, (N,) fp32, both are those of the losses times them.
    """
    valid = (targets != IGNORE_INDEX)[:, None]
    weight = valid.float() if factors is None else factors[:, None] * valid
    log_total, grad = compute(logits, weight, cap)
    # What concerns the targets alone is done apart: inside, it would keep the compiler from
    # fusing the rest.
    at = targets[:, None].where(valid, 0)
    capped, tanh = soft_cap(logits.gather(-1, at), cap)
    log_probability = capped - log_total
    # The target's own gradient is (p - 1) * (1 - tanh^2), set in fp32: taking 1 away from a
    # rounded p would lose everything when the model is sure.
    target_grad = torch.expm1(log_probability) * (1 - tanh * tanh) * weight
    grad.scatter_(-1, at, target_grad.to(grad.dtype))
    return (-log_probability * weight)[:, 0], grad


class FusedCrossEntropy(torch.autograd.Function):
    """Sum of the losses of all tokens, as a function of the hidden states and the unembedding."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 (autograd functions take positions)
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: SoftCap,
        compute: LogitsGrad,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Compute the sum () fp32 and keep the gradients for `backward`."""
        weight_cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk_tokens(weight, hidden)):
            part = slice(start, start + chunk_tokens(weight, hidden))
            logits = hidden[part] @ weight_cast.T
            parted = None if factors is None else factors[part]
            losses, grad = nats_and_grad(logits, targets[part], cap, compute, parted)
            loss_sum += losses.sum()
            torch.mm(grad, weight_cast, out=grad_hidden[part])
            grad_weight += grad.T @ hidden[part]
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss_sum

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_loss: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Scale the gradients that `forward` computed."""
        grad_hidden, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_hidden * grad_loss, grad_weight * grad_loss, None, None, None, None


def chunk_tokens(weight: Tensor, hidden: Tensor) -> int:
    """Say how many tokens' logits are held at a time."""
    if hidden.device.type == "cpu":
        return CPU_CHUNK_TOKENS
    return max(1, GPU_CHUNK_BYTES // (weight.size(0) * hidden.element_size()))
