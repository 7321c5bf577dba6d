"""The choices of kernels that a training step stands on: attention, loss, and Muon's products."""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from nanoray.model import attention, loss
from nanoray.train.device import own_device, training_dtype
from nanoray.train.optimizer import multiply_in_fp32, newton_schulz

CHUNK_TOKENS = (128, 256, 512, 1024, 4096)
BLOCK_QUERIES = (64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class KernelBench:
    """Time attention and loss, forward and backward, as they could be cut, and Newton-Schulz."""

    rows: int = 8
    """B: rows of a microbatch."""
    max_seq_len: int = 512
    """T: tokens in a row."""
    num_heads: int = 4
    """H: heads of attention."""
    head_dim: int = 64
    """E: dimensions of one head."""
    vocab_size: int = 8192
    """V: ids."""
    repeats: int = 15
    """How often each one has its turn; the medians count."""


def bench_kernels(config: KernelBench) -> str:
    """Run the benchmark; gives medians in milliseconds as one line of JSON."""
    device = own_device()
    dtype = training_dtype(device)
    work: dict[str, Callable[[], object]] = {
        **attention_ways(config, device, dtype),
        **loss_ways(config, device, dtype),
        **newton_schulz_ways(config, device),
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _, (name, run) in itertools.product(range(config.repeats + 2), work.items()):
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times[name].append(1e3 * (time.perf_counter() - began))
    # The first two turns compile.
    medians = {name: round(statistics.median(values[2:]), 2) for name, values in times.items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    facts = {"device": name, "dtype": str(dtype).removeprefix("torch."), "milliseconds": medians}
    return json.dumps({"benchmark": "kernels", **facts})


def attention_ways(
    config: KernelBench, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Give attention by torch's kernel, and by plain products over blocks of queries."""
    shape = (config.rows, config.num_heads, config.max_seq_len, config.head_dim)
    q, k, v = (torch.randn(shape, device=device).to(dtype).requires_grad_() for _ in range(3))

    def way(block: int | None) -> Callable[[], None]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention.causal_attention(q, k, v, in_blocks=block is not None)

        compiled = torch.compile(attend, dynamic=False)

        def run() -> None:
            with mock.patch.object(attention, "BLOCK_QUERIES", block or 1):
                compiled(q, k, v).sum().backward()

        return run

    ways = {"attention, torch's kernel": way(None)}
    if device.type == "cpu":
        ways |= {f"attention, blocks of {block} queries": way(block) for block in BLOCK_QUERIES}
    return ways


def loss_ways(
    config: KernelBench, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], None]]:
    """Give the fused loss in chunks of several sizes, and the loss over whole logits."""
    num_tokens, dim = config.rows * config.max_seq_len, config.num_heads * config.head_dim
    hidden = torch.randn(num_tokens, dim, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(config.vocab_size, dim, device=device) / dim**0.5).requires_grad_()
    targets = torch.randint(config.vocab_size, (num_tokens,), device=device)
    cap = loss.SoftCap(15.0, rounded=False)
    logits_grad = torch.compile(loss.logits_grad, dynamic=False)

    def in_chunks(tokens: int) -> Callable[[], None]:
        def run() -> None:
            with mock.patch.object(loss, "chunk_tokens", return_value=tokens):
                fused: Callable[..., Tensor] = loss.FusedCrossEntropy.apply
                fused(hidden, weight, targets, cap, logits_grad).backward()

        return run

    def whole(hidden: Tensor, weight: Tensor) -> Tensor:
        logits = (hidden @ weight.to(dtype).T).float()
        capped = cap.limit * torch.tanh(logits / cap.limit)
        return torch.nn.functional.cross_entropy(capped, targets, reduction="sum")

    compiled = torch.compile(whole, dynamic=False)
    ways = {f"loss, chunks of {tokens} tokens": in_chunks(tokens) for tokens in CHUNK_TOKENS}
    return {"loss, whole logits": lambda: compiled(hidden, weight).backward(), **ways}


def newton_schulz_ways(
    config: KernelBench, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Give Muon's iteration in bf16 over an MLP's (4D, D) by torch's products, and through fp32."""
    dim = config.num_heads * config.head_dim
    matrices = torch.randn(1, 4 * dim, dim, device=device).bfloat16()
    iterate: Callable[..., Tensor] = torch.compile(newton_schulz, dynamic=False)
    return {
        "Newton-Schulz, torch's products": lambda: iterate(matrices, torch.matmul),
        "Newton-Schulz, products in fp32": lambda: iterate(matrices, multiply_in_fp32),
    }
