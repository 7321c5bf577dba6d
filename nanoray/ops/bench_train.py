"""How fast the training loop is on this machine alone: one process, no Ray, tokenizing inline."""

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nanoray.config import InputError
from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import layout_for, plain_blocks
from nanoray.data.datasets import EMBEDDED
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan, read_documents, split_units
from nanoray.model.gpt import DTYPES, GPT
from nanoray.model.scaling import flops_per_token, gpt_config, learning_rates
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import SMALLEST_VOCABULARY, Tokenizer, split_words
from nanoray.train.device import own_device, peak_flops, prepare_process, training_dtype
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.step import StepConfig, train_step
from nanoray.train.world import LocalWorld

SEED = 42


@dataclass(frozen=True, kw_only=True)
class TrainBench:
    """Time the training loop in this process: no Ray, text tokenized inline."""

    data: str = EMBEDDED
    """Folder or glob of parquet files."""
    tokenizer: str | None = None
    """A tokenizer.json; by default one is trained on the data first."""
    depth: int = 4
    """Transformer blocks."""
    head_dim: int = 64
    """Dimensions of one attention head."""
    max_seq_len: int = 512
    """Tokens in a row."""
    vocab_size: int = 8192
    """Ids of a new tokenizer."""
    total_batch_tokens: int = 16_384
    """Tokens per step."""
    device_batch_size: int = 8
    """Rows per forward pass."""
    dtype: str | None = None
    """Precision of the computation; by default bfloat16 where the hardware has it."""
    eager: bool = False
    """Do not compile the model."""
    threads: int | None = None
    """CPU threads; by default torch's choice."""
    skip_seconds: float = 60.0
    """Time after the first step that does not count: compilation, caches, clocks."""
    seconds: float = 60.0
    """Time that counts."""
    output: str | None = None
    """File for the result as JSON; it is also the last line that is printed."""


def bench_train(config: TrainBench) -> str:
    """Run the benchmark; gives the result as one line of JSON."""
    prepare_process(config.threads)
    device = own_device()
    dtype = DTYPES[config.dtype] if config.dtype else training_dtype(device)
    world = LocalWorld(device)
    tokenizer = bench_tokenizer(config)
    plan = DataPlan(
        make_manifest(config.data, "text"),
        tokenizer,
        max_seq_len=config.max_seq_len,
        packing="bestfit",
        seed=SEED,
    )
    state = bench_state(config, tokenizer.vocab_size, dtype, world)
    rows = config.total_batch_tokens // config.max_seq_len
    layout = layout_for(rows, min(config.device_batch_size, rows), 1)
    steps = step_rows(
        plain_blocks(plan, layout, Cursor()), layout, Share(), pin=device.type == "cuda"
    )
    result = {
        "benchmark": "train",
        **asdict(config),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        **measure(state, steps, config, world),
    }
    peak = peak_flops(device, dtype)
    flops = flops_per_token(state.model.config) * result["tokens_per_second"]
    result |= {"mfu": flops / peak, "peak_flops": peak}
    if device.type == "cuda":
        result["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    if config.output:
        Path(config.output).write_text(json.dumps(result) + "\n")
    return json.dumps(result)


def bench_tokenizer(config: TrainBench) -> Tokenizer:
    """Load the tokenizer, or train one in this process."""
    if config.tokenizer is not None:
        return Tokenizer.from_json(json.loads(Path(config.tokenizer).read_text()), config.tokenizer)
    manifest = make_manifest(config.data, "text")
    counts: Counter[str] = Counter()
    for unit in split_units(manifest)[0]:
        counts.update(split_words(read_documents(manifest, unit)))
    merges = learn_merges(
        {word.encode(): count for word, count in counts.items()},
        config.vocab_size - SMALLEST_VOCABULARY,
    )
    return Tokenizer(merges)


def bench_state(
    config: TrainBench, vocab_size: int, dtype: torch.dtype, world: LocalWorld
) -> TrainState:
    """Build model and optimizer as a run does."""
    shape = gpt_config(
        config.depth, vocab_size, head_dim=config.head_dim, max_seq_len=config.max_seq_len
    )
    model = GPT(shape, dtype)
    model.init_weights(SEED)
    model.to(world.device)
    lr = learning_rates(shape, matrix=0.02, embedding=0.2, unembedding=0.004)
    rates = OptimizerConfig(
        matrix_lr=lr.matrix, embedding_lr=lr.embedding, unembedding_lr=lr.unembedding
    )
    optimizer = MuonAdamW(model, rates, world)
    if not config.eager:
        model.compile()
        optimizer.compile()
    return TrainState(model, optimizer)


def measure(
    state: TrainState, steps: Iterator[StepRows], config: TrainBench, world: LocalWorld
) -> dict[str, Any]:  # Any: JSON
    """Train for the time that was asked for, and give the speed."""
    step = StepConfig(
        schedule=Schedule(num_steps=10**9),
        device_batch_size=config.device_batch_size,
        is_empty=lambda position: False,
    )
    seconds, waits, losses = [], [], []
    counted = began = first = 0.0
    while not counted or time.perf_counter() - counted < config.seconds:
        result = train_step(state, next(steps), step, world)
        losses.append(result.loss)
        now = time.perf_counter()
        began, first = began or now, first or result.seconds
        if counted:
            seconds.append(result.seconds)
            waits.append(result.data_wait_seconds)
        elif now - began >= config.skip_seconds:
            counted = now
    if not seconds:
        raise InputError(f"--seconds {config.seconds} is less than one step. Give more.")
    return {
        "first_step_seconds": first,
        "steps": len(seconds),
        "tokens_per_second": config.total_batch_tokens / statistics.median(seconds),
        "mean_tokens_per_second": config.total_batch_tokens * len(seconds) / sum(seconds),
        "best_tokens_per_second": config.total_batch_tokens / min(seconds),
        "data_wait_share": sum(waits) / sum(seconds),
        "last_loss": losses[-1],
    }
