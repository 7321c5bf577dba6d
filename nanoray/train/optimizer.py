"""Muon for the blocks, AdamW for embedding and unembedding, shared out over the ranks.

Parameters of one shape are views into one stack, gradients likewise. `reduce` sums each stack of
gradients over the ranks with one reduce-scatter, so that every rank holds the sum of its share, and
gives the norm over all shares. `update` clips by it, updates the rank's share, and gathers each
stack again while the next one is updated. State exists only for a rank's own share, and is known by
the parameter's name, so that a checkpoint can be loaded by any number of ranks.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanoray.model.gpt import GPT
from nanoray.train.device import multiplies_bf16
from nanoray.train.world import Pending, World, all_gather, all_reduce_sum, reduce_scatter_sum

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Muon: K. Jordan 2024, coefficients of the quintic iteration."""
NEWTON_SCHULZ_STEPS = 5
MATRICES_AT_ONCE_ELEMENTS = 2**28
"""Orthogonalized at a time, so that the copies in the compute dtype stay small."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Hyperparameters; learning rates are those of `model.scaling.learning_rates`."""

    matrix_lr: float
    embedding_lr: float
    unembedding_lr: float
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = 1e-10
    weight_decay: float = 0.0
    """Decoupled, of AdamW alone."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient over all parameters and ranks; None leaves it as it is."""
    newton_schulz_dtype: str = "bfloat16"


@dataclass(frozen=True)
class Slice:
    """Rows of one parameter's state that this rank holds."""

    name: str
    """As in `momentum/blocks.0.mlp.up.weight`."""
    start: int
    """First row; 0 for a whole matrix."""
    tensor: Tensor


class Stack:
    """Parameters along dim 0, and the share of them that this rank updates."""

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], *, by_row: bool, world: World
    ) -> None:
        """Lay parameters out; `by_row` shares out the rows of a single one, else whole matrices."""
        self.named, self.by_row, self.rank = named, by_row, world.rank
        items = named[0][1].data if by_row else torch.stack([p.data for _, p in named])
        self.count = len(items)
        self.share = -(-self.count // world.world_size)
        padded = (self.share * world.world_size, *items.shape[1:])
        self.values = torch.zeros(padded, dtype=items.dtype, device=world.device)
        self.values[: self.count] = items
        self.grads = torch.zeros_like(self.values)
        for index, (_, parameter) in enumerate(named):
            parameter.data = self.values[: self.count] if by_row else self.values[index]
            parameter.grad = self.grads[: self.count] if by_row else self.grads[index]
        first = world.rank * self.share
        self.mine = self.values[first : first + self.share]
        alone = world.world_size == 1
        self.grad = self.grads if alone else torch.zeros_like(self.mine)
        self.state: dict[str, Tensor] = {}

    def add_state(self, *kinds: str) -> None:
        """Give this rank's share of the stack a zero state of each kind."""
        self.state = {kind: torch.zeros_like(self.mine) for kind in kinds}

    def reduce(self) -> Pending:
        """Begin to sum the gradients over the ranks into `grad`."""
        return (
            Pending(None) if self.grad is self.grads else reduce_scatter_sum(self.grad, self.grads)
        )

    def gather(self) -> Pending:
        """Begin to collect the updated shares of all ranks into `values`."""
        return Pending(None) if self.grad is self.grads else all_gather(self.values, self.mine)

    def slices(self) -> Iterator[Slice]:
        """Give the state of this rank's share, by name; padding has none."""
        first = self.rank * self.share
        last = min(first + self.share, self.count)
        for kind, tensor in self.state.items():
            if self.by_row and first < last:
                yield Slice(f"{kind}/{self.named[0][0]}", first, tensor[: last - first])
            for index in range(first, last if not self.by_row else first):
                yield Slice(f"{kind}/{self.named[index][0]}", 0, tensor[index - first])


class MuonAdamW:
    """The optimizer of a GPT."""

    def __init__(self, model: GPT, config: OptimizerConfig, world: World) -> None:
        self.config, self.world = config, world
        shapes: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in model.blocks.named_parameters(prefix="blocks"):
            shapes.setdefault(parameter.shape, []).append((name, parameter))
        self.muon = [Stack(named, by_row=False, world=world) for named in shapes.values()]
        for stack in self.muon:
            stack.add_state("momentum")
        self.adamw: list[tuple[Stack, float]] = []
        for name, lr in (
            ("unembedding", config.unembedding_lr),
            ("embedding", config.embedding_lr),
        ):
            weight = getattr(model, name).weight
            stack = Stack([(f"{name}.weight", weight)], by_row=True, world=world)
            stack.add_state("exp_avg", "exp_avg_sq")
            self.adamw.append((stack, lr))
        self.stacks = [stack for stack, _ in self.adamw] + self.muon
        self._adamw_update: Callable[..., None] = adamw_update
        self._newton_schulz: Callable[..., Tensor] = newton_schulz
        has_bf16 = multiplies_bf16(next(model.parameters()).device)
        is_emulated = config.newton_schulz_dtype == "bfloat16" and not has_bf16
        self._multiply = multiply_in_fp32 if is_emulated else torch.matmul

    def compile(self) -> None:
        """Compile the arithmetic of the updates."""
        self._adamw_update = torch.compile(adamw_update, dynamic=False)
        self._newton_schulz = torch.compile(newton_schulz, dynamic=False)

    def zero_grad(self) -> None:
        """Set all gradients to zero; they stay views into their stacks."""
        for stack in self.stacks:
            stack.grads.zero_()

    @torch.no_grad()
    def reduce(self, num_targets: Tensor) -> Tensor:
        """Sum the gradients of all ranks, and change nothing else.

        Args:
            num_targets: by how much the sum is divided to be a mean, () on the device, the same on
            all ranks.

        Returns:
            The norm of the mean gradient, (), the same on all ranks.
        """
        pending = [(stack, stack.reduce()) for stack in self.stacks]
        square = torch.zeros((), device=self.world.device)
        for stack, reduction in pending:
            reduction.wait()
            square += stack.grad.float().square().sum()
        return all_reduce_sum(square).sqrt() / num_targets

    @torch.no_grad()
    def update(
        self,
        updates: int,
        *,
        norm: Tensor,
        num_targets: Tensor,
        lr_multiplier: float,
        momentum: float,
    ) -> None:
        """Update all parameters from the gradients that `reduce` has summed.

        Args:
            updates: those made before this one; AdamW's bias correction counts them.
            norm: what `reduce` gave.
            num_targets: as for `reduce`.
            lr_multiplier: factor on all learning rates.
            momentum: Muon's.
        """
        scale = 1 / num_targets
        if self.config.grad_clip is not None:
            scale = scale * (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)

        gathering = []
        for stack, lr in self.adamw:
            self._update_rows(stack, updates, scale, lr * lr_multiplier)
            gathering.append(stack.gather())
        for stack in self.muon:
            self._update_matrices(stack, scale, self.config.matrix_lr * lr_multiplier, momentum)
            gathering.append(stack.gather())
        for gather in gathering:
            gather.wait()

    def _update_rows(self, stack: Stack, updates: int, scale: Tensor, lr: float) -> None:
        """Make one AdamW update of this rank's share of a stack."""
        first, second = (1 - beta ** (updates + 1) for beta in self.config.betas)
        size, decay = lr * math.sqrt(second) / first, 1 - lr * self.config.weight_decay
        factors = torch.stack([scale, scale.new_tensor(size), scale.new_tensor(decay)])
        state = (stack.state["exp_avg"], stack.state["exp_avg_sq"])
        self._adamw_update(
            stack.mine, stack.grad, state, factors, self.config.betas, self.config.eps
        )

    def _update_matrices(self, stack: Stack, scale: Tensor, lr: float, momentum: float) -> None:
        """Make one Muon update of this rank's share of a stack, (n, rows, cols)."""
        rows, cols = stack.mine.shape[-2:]
        size = lr * math.sqrt(max(1.0, rows / cols))
        dtype = getattr(torch, self.config.newton_schulz_dtype)
        at_once = max(1, MATRICES_AT_ONCE_ELEMENTS // (rows * cols))
        for first in range(0, len(stack.mine), at_once):
            part = slice(first, first + at_once)
            average = stack.state["momentum"][part]
            g = stack.grad[part] * scale
            average.lerp_(g, 1 - momentum)
            update = g.lerp(average, momentum)  # Nesterov
            update = self._newton_schulz(update.to(dtype), self._multiply)
            stack.mine[part].sub_(update, alpha=size)

    def slices(self) -> list[Slice]:
        """Give all state that this rank holds."""
        return [piece for stack in self.stacks for piece in stack.slices()]

    def load(self, read: Callable[[str, int, int], Tensor]) -> None:
        """Restore this rank's share; `read` gives rows start..end of a state by its name."""
        for piece in self.slices():
            end = piece.start + len(piece.tensor)
            piece.tensor.copy_(read(piece.name, piece.start, end))


def adamw_update(
    values: Tensor,
    grad: Tensor,
    state: tuple[Tensor, Tensor],
    factors: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Make one AdamW update in fp32, in place; eps stands beside the uncorrected root, as in d34.

    Args:
        values: parameters, (rows, cols).
        grad: summed gradient of the same shape.
        state: averages of the gradient and of its square.
        factors: (3,) on the device: of the gradient, bias-corrected step size, of decay.
        betas: how slowly the averages move.
        eps: added to the root.
    """
    scale, size, decay = factors.unbind()
    g = grad.float() * scale
    m = state[0].float().lerp(g, 1 - betas[0])
    v = state[1].float().lerp(g * g, 1 - betas[1])
    state[0].copy_(m)
    state[1].copy_(v)
    values.copy_(values.float() * decay - size * m / (v.sqrt() + eps))


def newton_schulz(
    matrices: Tensor, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> Tensor:
    """Bring all singular values near 1: (n, rows, cols) -> the same, in the dtype that comes in."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = multiply(x, x.mT)
        # The order of these products and sums decides how bf16 rounds; it is d34's.
        polynomial = b * gram + multiply(c * gram, gram)
        x = a * x + multiply(polynomial, x)
    return x.mT if tall else x


def multiply_in_fp32(a: Tensor, b: Tensor) -> Tensor:
    """Multiply as hardware for bf16 does: exact products, summed in fp32, rounded once.

    Where there is no such hardware, this is several times as fast as torch's product of bf16.
    """
    return (a.float() @ b.float()).to(a.dtype)
