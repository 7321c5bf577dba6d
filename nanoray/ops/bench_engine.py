"""The engine alone: how fast it reads prompts and writes answers, by how many it has at once."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch

from nanoray.config import require_positive
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sampling import SamplingParams
from nanoray.model.gpt import DTYPES, GPT
from nanoray.model.interop import transformers_config, transformers_weights
from nanoray.model.kv_cache import cache_bytes_per_token
from nanoray.model.scaling import gpt_config
from nanoray.text.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from nanoray.train.device import own_device, prepare_process, training_dtype

Run = Callable[[list[list[int]], int], dict[str, float]]
READ_BYTES = 2**28
READ_REPEATS = 8


@dataclass(frozen=True, kw_only=True)
class EngineBench:
    """Time prefill and decode of random weights; and of transformers' generate, if asked to."""

    depth: int = 12
    """Transformer blocks."""
    head_dim: int | None = None
    """Dimensions of one head; by default 64 on CPUs, 128 on GPUs."""
    vocab_size: int = 8192
    """V: ids."""
    max_seq_len: int = 512
    """Context of the model."""
    prompt_tokens: int = 64
    """Tokens of each prompt."""
    answer_tokens: int = 64
    """Tokens of each answer."""
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Answers at once."""
    dtype: str | None = None
    """bfloat16 or float32; by default what the device is fast in."""
    repeats: int = 3
    """How often each is measured; medians count."""
    transformers: bool = False
    """Measure `generate` of transformers too, one by one and batched, by turns with the engine."""

    def __post_init__(self) -> None:
        for name in ("depth", "vocab_size", "prompt_tokens", "answer_tokens", "repeats"):
            least = SMALLEST_VOCABULARY if name == "vocab_size" else 1
            require_positive(name, getattr(self, name), least=least)


def bench_engine(config: EngineBench) -> str:
    """Run the benchmark; gives one line of JSON."""
    prepare_process()
    device = own_device()
    dtype = DTYPES[config.dtype] if config.dtype else training_dtype(device)
    shape = gpt_config(
        config.depth,
        config.vocab_size,
        max_seq_len=config.max_seq_len,
        head_dim=config.head_dim or (128 if device.type == "cuda" else 64),
    )
    model = GPT(shape, dtype)
    model.init_weights(0)
    torch.nn.init.normal_(model.unembedding.weight, std=0.02)  # else all logits are equal
    theirs = TransformersModel(model, device) if config.transformers else None
    model = model.to(device)
    sizes = config.batch_sizes
    engine_config = EngineConfig(max_sequences=max(sizes), step_tokens=max(512, max(sizes)))
    engine = Engine(model, any_tokenizer(config.vocab_size), engine_config)
    bandwidth = read_bytes_per_second(device, dtype)
    ways: dict[str, tuple[Run, int]] = {
        f"engine, {size} at once": (partial(engine_run, engine), size) for size in sizes
    }
    if theirs is not None:
        most, at_once = max(sizes), partial(transformers_run, theirs)
        ways["transformers, 1 at once"] = (at_once, 1)
        ways[f"transformers, {most} one by one"] = (partial(transformers_serial, theirs), most)
        ways[f"transformers, {most} batched"] = (at_once, most)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for turn in range(config.repeats + 1):
        for name, (run, size) in ways.items():
            result = run(prompts(config, size, turn), config.answer_tokens)
            if turn:  # the first turn warms up
                measured[name].append(result)
    card = {
        name: {key: round(statistics.median(r[key] for r in results), 4) for key in results[0]}
        for name, results in measured.items()
    }
    weights_gb = weight_bytes(model) / 1e9
    for size in sizes:
        row = card[f"engine, {size} at once"]
        cache_gb = row.pop("blocks") * block_bytes(model, engine_config.block_size) / 1e9
        row |= {"cache_gb": round(cache_gb, 4), "model_gb": round(weights_gb + cache_gb, 4)}
        row["mbu"] = round(step_bytes(model, config, size) / row["seconds_per_step"] / bandwidth, 3)
    facts = {
        "benchmark": "engine",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "depth": config.depth,
        "prompt_tokens": config.prompt_tokens,
        "answer_tokens": config.answer_tokens,
        "read_gb_per_second": round(bandwidth / 1e9, 1),
        "weights_gb": round(weights_gb, 4),
        "memory_gb": round(memory_bytes(device) / 1e9, 2),
    }
    return json.dumps({**facts, "measured": card})


def any_tokenizer(vocab_size: int) -> Tokenizer:
    """Give a tokenizer of a size; nothing is encoded."""
    return Tokenizer([divmod(i, 256) for i in range(vocab_size - SMALLEST_VOCABULARY)])


def prompts(config: EngineBench, count: int, turn: int) -> list[list[int]]:
    """Draw prompts that no earlier turn had, so that the prefix cache has none of them."""
    generator = torch.Generator().manual_seed(1000 * count + turn)
    ids = torch.randint(0, 256, (count, config.prompt_tokens), generator=generator)
    return [row.tolist() for row in ids]


def engine_run(engine: Engine, batch: list[list[int]], count: int) -> dict[str, float]:
    """Answer a batch; gives seconds and rates of prefill and decode."""
    params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
    for prompt in batch:
        engine.add(prompt, params)
    began = time.perf_counter()
    first, seen, steps, blocks = began, 0, 0, 0
    while engine.has_work:
        outputs = engine.step()
        blocks = max(blocks, engine.blocks.num_blocks - 1 - engine.blocks.num_unused)
        if seen < len(batch):
            seen += len(outputs)
            first = time.perf_counter()
        else:
            steps += 1
    ended = time.perf_counter()
    return {
        "tokens_per_second": len(batch) * count / (ended - began),
        "prefill_tokens_per_second": sum(map(len, batch)) / (first - began),
        "decode_tokens_per_second": len(batch) * steps / (ended - first),
        "first_token_seconds": first - began,
        "seconds_per_step": (ended - first) / max(steps, 1),
        "blocks": blocks,
    }


class TransformersModel:
    """The same weights in transformers' class."""

    def __init__(self, model: GPT, device: torch.device) -> None:
        from transformers import NanoChatConfig, NanoChatForCausalLM

        config = NanoChatConfig(**transformers_config(model.config))
        theirs: Any = NanoChatForCausalLM(config)  # Any: an optional dependency
        theirs.load_state_dict(transformers_weights(model.state_dict()))
        self.model = theirs.to(device, model.compute_dtype).eval()
        self.device = device


def transformers_run(
    theirs: TransformersModel, batch: list[list[int]], count: int
) -> dict[str, float]:
    """Answer a batch by one call of generate; gives tokens per second."""
    ids = torch.tensor(batch, device=theirs.device)
    began = time.perf_counter()
    with torch.no_grad():
        out = theirs.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    assert out.shape[1] == len(batch[0]) + count, out.shape
    return {"tokens_per_second": len(batch) * count / (time.perf_counter() - began)}


def transformers_serial(
    theirs: TransformersModel, batch: list[list[int]], count: int
) -> dict[str, float]:
    """Answer a batch prompt by prompt."""
    began = time.perf_counter()
    for prompt in batch:
        transformers_run(theirs, [prompt], count)
    return {"tokens_per_second": len(batch) * count / (time.perf_counter() - began)}


def weight_bytes(model: GPT) -> int:
    """Give the memory of a model's weights."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def block_bytes(model: GPT, block_size: int) -> float:
    """Give the memory of keys and values of so many tokens, over all layers."""
    shape = model.config
    return block_size * cache_bytes_per_token(
        (shape.num_layers, shape.num_kv_heads, shape.head_dim), model.compute_dtype
    )


def step_bytes(model: GPT, config: EngineBench, size: int) -> float:
    """Give the bytes that one decode step must read: weights, and keys and values so far."""
    embedding = model.embedding.weight
    weights = weight_bytes(model) - embedding.numel() * embedding.element_size()
    tokens = config.prompt_tokens + config.answer_tokens / 2
    return weights + size * tokens * block_bytes(model, 1)


def read_bytes_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how fast the device reads memory: the best of some maxima of a large tensor."""
    block = torch.ones(READ_BYTES // dtype.itemsize, dtype=dtype, device=device)
    best = 0.0
    for _ in range(READ_REPEATS):
        began = time.perf_counter()
        block.view(torch.int32).max().item()
        best = max(best, READ_BYTES / (time.perf_counter() - began))
    del block
    gc.collect()
    return best


def memory_bytes(device: torch.device) -> float:
    """Give the memory that this process holds, or held at most on a GPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(psutil.Process().memory_info().rss)
