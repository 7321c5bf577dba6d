"""The transformer: token ids in, logits or losses out.

Numerics are d34's (nanochat, November 2025), and each constant of them is a field of `GPTConfig`
that is saved with the weights. Weights are fp32 masters, cast to the compute dtype by each product;
autocast is not used, because what it does to norms depends on the torch version.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoray.config import InputError
from nanoray.model.attention import blocks_are_faster, causal_attention, fastest_kernels
from nanoray.model.kv_cache import CacheLayout, KVCache
from nanoray.model.loss import (
    FusedCrossEntropy,
    SoftCap,
    chunk_tokens,
    log_total,
    logits_grad,
    soft_cap,
    token_nats,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Shape and numerics of a model: with the weights, all that its logits need."""

    vocab_size: int
    """V: ids of the tokenizer, special tokens included."""
    max_seq_len: int
    """T of training; rotary angles reach `rope_reach` times as far."""
    num_layers: int
    """L: transformer blocks."""
    num_heads: int
    """H: query heads."""
    num_kv_heads: int
    """K: key and value heads; each serves H/K query heads."""
    head_dim: int
    """E: dimensions of one head."""
    mlp_ratio: int = 4
    """Width of the MLP's hidden layer, in model dims."""
    rope_base: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_sign: int = -1
    """Direction of the rotation by position: -1 is nanochat's, +1 that of Llama."""
    rope_dtype: str = "bfloat16"
    """Precision in which cos and sin are kept, whatever the compute dtype."""
    rope_reach: int = 10
    """Longest sequence that can be computed, in `max_seq_len`."""
    norm_eps: float = 2.0**-23
    """Added to the mean square under the root of each norm."""
    qk_scale: float = 1.0
    """Factor on queries and keys after their norm."""
    softcap: float = 15.0
    """Logits are softcap * tanh(logits / softcap)."""
    softcap_rounded: bool = False
    """Round the capped logits to the compute dtype before the loss, as d34 did."""
    window_pattern: str = "L"
    """Attention of the layers, tiled: L sees all of the past, S a quarter; the last is L."""
    embedding_dtype: str = "float32"
    """Precision of the embedding's master weights; d34 kept them in bfloat16."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"{self.num_heads} heads cannot be shared out to {self.num_kv_heads} KV heads. "
                "Choose a divisor of the number of heads."
            )
        if self.head_dim % 2:
            raise InputError(
                f"head_dim {self.head_dim} is odd, and rotary angles need pairs of dimensions."
            )
        if set(self.window_pattern) - set("LS") or not self.window_pattern:
            raise InputError(f"window_pattern {self.window_pattern!r} may hold only L and S.")

    @property
    def model_dim(self) -> int:
        """D: width of the residual stream."""
        return self.num_heads * self.head_dim

    @property
    def soft_cap(self) -> SoftCap:
        """How the logits are bounded."""
        return SoftCap(self.softcap, self.softcap_rounded)

    def window(self, layer: int) -> int | None:
        """Give how many earlier tokens a layer sees; None for all.

        A short window is a quarter of T, rounded up to a multiple of 128 (nanochat).
        """
        pattern = self.window_pattern[layer % len(self.window_pattern)]
        if pattern == "L" or layer == self.num_layers - 1:
            return None
        return 128 * math.ceil(math.ceil(self.max_seq_len / 4) / 128)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all fields."""
        return dataclasses.asdict(self)


class Linear(nn.Module):
    """A product with a weight that is kept in its own precision and cast to the input's."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply: (..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight.to(x.dtype))


class Embedding(nn.Module):
    """A row of numbers for each id."""

    def __init__(self, num_ids: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_ids, dim))

    def forward(self, ids: Tensor) -> Tensor:
        """Look ids up: (...) -> (..., dim), in the precision of the weights."""
        return F.embedding(ids, self.weight)


class Attention(nn.Module):
    """Multi-head causal attention; queries and keys are rotated by position, then normed."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        D, E = config.model_dim, config.head_dim
        self.config, self.layer, self.window = config, layer, config.window(layer)
        self.in_blocks = blocks_are_faster()
        self.query = Linear(D, config.num_heads * E)
        self.key = Linear(D, config.num_kv_heads * E)
        self.value = Linear(D, config.num_kv_heads * E)
        self.output = Linear(D, D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, texts: Tensor | None) -> Tensor:
        """Attend: (B, T, D) -> (B, T, D), within each text of a row if given."""
        q, k, v = self.project(x, cos, sin)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H or K, T, E)
        mixed = causal_attention(
            q, k, v, self.window, texts=texts, in_blocks=self.in_blocks
        )  # (B, H, T, E)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def forward_cached(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, layout: CacheLayout
    ) -> Tensor:
        """Attend to what is cached, and add these tokens to it: (N, D) -> (N, D)."""
        q, k, v = self.project(x, cos, sin)  # (N, H or K, E)
        cache.write(self.layer, layout.slots, k, v)
        mixed = cache.attend(self.layer, q, layout, self.window)  # (N, H, E)
        return self.output(mixed.flatten(1))

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make queries, keys and values: (..., D) -> (..., H, E) and twice (..., K, E)."""
        heads, scale = (-1, self.config.head_dim), self.config.qk_scale
        q = norm(rotate(self.query(x).unflatten(-1, heads), cos, sin), self.config.norm_eps)
        k = norm(rotate(self.key(x).unflatten(-1, heads), cos, sin), self.config.norm_eps)
        if scale != 1:
            q, k = q * scale, k * scale
        return q, k, self.value(x).unflatten(-1, heads)


class MLP(nn.Module):
    """Two products with a squared ReLU between them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.model_dim, config.mlp_ratio * config.model_dim)
        self.down = Linear(config.mlp_ratio * config.model_dim, config.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token: (B, T, D) -> (B, T, D)."""
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    """One layer: attention, then MLP, each on the normed stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)
        self.norm_eps = config.norm_eps

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, texts: Tensor | None) -> Tensor:
        """Add what this layer computes: (B, T, D) -> (B, T, D)."""
        x = x + self.attention(norm(x, self.norm_eps), cos, sin, texts)
        return x + self.mlp(norm(x, self.norm_eps))

    def forward_cached(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache, layout: CacheLayout
    ) -> Tensor:
        """Do the same for tokens whose past is cached: (N, D) -> (N, D)."""
        x = x + self.attention.forward_cached(norm(x, self.norm_eps), cos, sin, cache, layout)
        return x + self.mlp(norm(x, self.norm_eps))


RunBlock = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], Tensor]


def run_block(
    block: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, texts: Tensor | None
) -> Tensor:
    """Call a layer; compiled, this one function serves every layer."""
    computed: Tensor = block(x, cos, sin, texts)
    return computed


class GPT(nn.Module):
    """A decoder-only transformer.

    The residual stream is in `compute_dtype`; logits and losses are fp32.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.embedding = Embedding(config.vocab_size, config.model_dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.unembedding = Linear(config.model_dim, config.vocab_size)
        cos, sin = rotary_angles(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._run_block: RunBlock = run_block
        self._logits_grad, self._log_total = logits_grad, log_total

    def compile(self) -> None:
        """Compile what the loss is made of; the loop over chunks of logits stays Python.

        Each layer is compiled for itself, and all of them share the code, so that a start takes as
        long for 34 layers as for one (docs/measurements.md). The embedding stays out: compiled, its
        gradient is added up by threads in any order (torch 2.13), and no run could be repeated to
        the bit.
        """
        # RL has a shape for each length of answers, with and without gradients.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 16)
        self._run_block = torch.compile(run_block, dynamic=False, fullgraph=True)
        self._logits_grad = torch.compile(logits_grad, dynamic=False)
        self._log_total = torch.compile(log_total, dynamic=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw the initial weights on the CPU, so that every rank and device begins alike.

        Matrices: normal, std 1/sqrt(in) * min(1, sqrt(out/in)); embedding: normal, std 1; the
        outputs of attention and MLP and the unembedding: zero, so that the first loss is ln(V).
        The draws come in d34's order, zeroed ones included.
        """
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(self.embedding.weight.shape).normal_(generator=generator)
        self.embedding.to(DTYPES[self.config.embedding_dtype])
        self.embedding.weight.copy_(weight)
        for module in self.modules():
            if isinstance(module, Linear):
                fan_out, fan_in = module.weight.shape
                std = fan_in**-0.5 * min(1.0, math.sqrt(fan_out / fan_in))
                weight = torch.empty(fan_out, fan_in).normal_(0.0, std, generator=generator)
                module.weight.copy_(weight)
        for module in self.modules():
            if isinstance(module, Block):
                module.attention.output.weight.zero_()
                module.mlp.down.weight.zero_()
        self.unembedding.weight.zero_()

    def hidden(self, ids: Tensor) -> Tensor:
        """Compute the normed residual stream after the last layer: (B, T) ids -> (B, T, D)."""
        return self.layers(ids, run_block)

    def layers(self, ids: Tensor, run: RunBlock, texts: Tensor | None = None) -> Tensor:
        """Do what `hidden` does, each layer by `run`; within each text of a row if given."""
        embedded = self.embedding(ids)
        T = embedded.size(1)
        assert self.cos.size(0) >= T, f"{T} tokens, and rotary angles reach {self.cos.size(0)}"
        cos, sin = self.cos[:T].to(self.compute_dtype), self.sin[:T].to(self.compute_dtype)
        if texts is not None:
            positions = positions_within(texts)
            cos, sin = cos[positions], sin[positions]  # (B, T, 1, E/2)
        x = norm(embedded.to(self.compute_dtype), self.config.norm_eps)  # (B, T, D)
        for block in self.blocks:
            x = run(block, x, cos, sin, texts)
        return norm(x, self.config.norm_eps)

    def hidden_cached(self, ids: Tensor, cache: KVCache, layout: CacheLayout) -> Tensor:
        """Do what `hidden` does for tokens, (N,) ids, whose past is cached: -> (N, D)."""
        cos = self.cos[layout.positions].to(self.compute_dtype)  # (N, 1, E/2)
        sin = self.sin[layout.positions].to(self.compute_dtype)
        x = norm(self.embedding(ids).to(self.compute_dtype), self.config.norm_eps)  # (N, D)
        for block in cast("Iterable[Block]", self.blocks):
            x = block.forward_cached(x, cos, sin, cache, layout)
        return norm(x, self.config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute the logits of each position: (B, T) ids -> (B, T, V) fp32."""
        return self.logits(self.hidden(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Unembed: (..., D) -> (..., V) fp32, soft-capped."""
        return soft_cap(self.unembedding(hidden), self.config.soft_cap)[0]

    def loss_sum(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        texts: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Sum the losses in nats of all targets, () fp32, for `backward`.

        Args:
            inputs: (B, T) ids.
            targets: (B, T) ids, or IGNORE_INDEX where there is no loss.
            texts: (B, T), as in `causal_attention`.
            factors: (B, T) fp32, what each target's loss is multiplied by; by default 1.
        """
        with fastest_kernels(inputs.device):
            hidden = self.layers(inputs, self._run_block, texts).flatten(0, 1)  # (B*T, D)
        fused: Callable[..., Tensor] = FusedCrossEntropy.apply
        return fused(
            hidden,
            self.unembedding.weight,
            targets.flatten(),
            self.config.soft_cap,
            self._logits_grad,
            None if factors is None else factors.flatten(),
        )

    @torch.no_grad()
    def token_losses(
        self, inputs: Tensor, targets: Tensor, *, texts: Tensor | None = None
    ) -> Tensor:
        """Give each target's loss in nats, (B, T) fp32; 0 where the target is IGNORE_INDEX."""
        with fastest_kernels(inputs.device):
            hidden = self.layers(inputs, self._run_block, texts).flatten(0, 1)  # (B*T, D)
        chunk = chunk_tokens(self.unembedding.weight, hidden)
        losses = []
        for part, wanted in zip(hidden.split(chunk), targets.flatten().split(chunk), strict=True):
            logits = self.unembedding(part)  # (chunk, V)
            total = self._log_total(logits, self.config.soft_cap)
            losses.append(token_nats(logits, wanted, self.config.soft_cap, total))
        return torch.cat(losses).view(targets.shape)


def norm(x: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last dimension, in fp32 inside; no learned scale."""
    return F.rms_norm(x, (x.size(-1),), eps=eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (j, j + E/2) of x, (B, T, H, E), by the angles, (T or B, T, 1, E/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def positions_within(texts: Tensor) -> Tensor:
    """Count each token's position from the beginning of its text: (B, T) -> (B, T).

    Angles are kept in bf16, so a text has other ones elsewhere in a row; counted so, it is computed
    as if it were alone.
    """
    index = torch.arange(texts.size(1), device=texts.device).expand_as(texts)
    begins = torch.ones_like(texts, dtype=torch.bool)
    begins[:, 1:] = texts[:, 1:] != texts[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def rotary_angles(config: GPTConfig) -> tuple[Tensor, Tensor]:
    """Compute cos and sin of all rotary angles, each (reach * T, 1, E/2), with the sign in sin."""
    E = config.head_dim
    frequency = config.rope_base ** (-torch.arange(0, E, 2, dtype=torch.float32) / E)
    position = torch.arange(config.rope_reach * config.max_seq_len, dtype=torch.float32)
    angle = torch.outer(position, frequency)[:, None, :]
    dtype = DTYPES[config.rope_dtype]
    return angle.cos().to(dtype), (config.rope_sign * angle.sin()).to(dtype)
