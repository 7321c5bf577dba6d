"""A run small enough that a step takes milliseconds: model, data, and the state between steps."""

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import Layout, plain_blocks
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan
from nanoray.model.gpt import GPT
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld, World
from tests.data.shards import sentences, write_shard
from tests.support import tiny_gpt, tiny_tokenizer

T = 24
LAYOUT = Layout(rows_per_step=12, rows_per_block=4)
OPTIMIZER = OptimizerConfig(
    matrix_lr=0.02,
    embedding_lr=0.2,
    unembedding_lr=0.004,
    newton_schulz_dtype="float32",
)


def tiny_model(**fields: Any) -> GPT:
    """Build a GPT of D=16 for the tiny tokenizer, with no zero weights."""
    shape = {"num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "max_seq_len": T}
    return tiny_gpt(**{**shape, "vocab_size": tiny_tokenizer().vocab_size, **fields})


def tiny_state(world: World | None = None, **fields: Any) -> TrainState:
    """Give a run that has made no step, on its world's device."""
    world = world or LocalWorld()
    model = tiny_model(**fields).to(world.device)
    return TrainState(model, MuonAdamW(model, OPTIMIZER, world))


def scramble(state: TrainState, seed: int) -> None:
    """Fill weights and optimizer state with random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [p.data for p in state.model.parameters()]
    for tensor in tensors + [piece.tensor for piece in state.optimizer.slices()]:
        tensor.copy_(torch.randn(tensor.shape, generator=generator))


def contents(state: TrainState) -> dict[str, torch.Tensor]:
    """Copy all weights and optimizer state of one rank, by name."""
    weights = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    return weights | {
        f"{piece.name}[{piece.start}:]": piece.tensor.clone() for piece in state.optimizer.slices()
    }


def same_contents(first: TrainState, second: TrainState) -> bool:
    """Say whether two states have the same weights and optimizer state, bit for bit."""
    a, b = contents(first), contents(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def tiny_plan(folder: Path) -> DataPlan:
    """Write a few documents and plan them, in units of some rows each."""
    write_shard(folder / "a.parquet", sentences(300))
    write_shard(folder / "b.parquet", sentences(20, seed=1))
    manifest = replace(make_manifest(str(folder), "text"), unit_bytes=3000)
    return DataPlan(manifest, tiny_tokenizer(), max_seq_len=T, packing="bestfit", seed=0)


def tiny_steps(
    plan: DataPlan, start: Cursor, world: World, start_step: int = 0
) -> Generator[StepRows, None, None]:
    """Give a rank's rows of step after step, as the stream of a group that starts there does."""
    W = world.world_size
    padding = LAYOUT.padding_blocks(start_step, (W, W))
    blocks = enumerate(plain_blocks(plan, LAYOUT, start), start=padding)
    mine = (block for k, block in blocks if k % W == world.rank)
    return step_rows(mine, LAYOUT, Share(world.rank, W, padding), pin=world.device.type == "cuda")
