"""Small real things that several test files need."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import regex
import torch

from nanoray.data.datasets import EMBEDDED
from nanoray.model.gpt import GPT, GPTConfig
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import SPLIT_PATTERN, Tokenizer


def write_parquet(
    folder: Path, name: str, documents: list[str], *, row_group_size: int = 100
) -> Path:
    """Write documents as one shard, and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": documents}), folder / name, row_group_size=row_group_size)
    return folder / name


@cache
def embedded_text(num_chars: int) -> str:
    """Give the beginning of the corpus that comes with nanoray."""
    documents = pq.read_table(Path(EMBEDDED) / "shard_00.parquet")["text"].to_pylist()
    return "\n".join(documents)[:num_chars]


@cache
def tiny_tokenizer(num_merges: int = 100) -> Tokenizer:
    """Train a tokenizer on a few pages of the embedded corpus."""
    counts: dict[bytes, int] = {}
    for piece in regex.findall(SPLIT_PATTERN, embedded_text(20_000)):
        counts[piece.encode()] = counts.get(piece.encode(), 0) + 1
    return Tokenizer(learn_merges(counts, num_merges))


def tiny_config(**fields: Any) -> GPTConfig:
    """Give the shape of the golden model of nanochat.md 1.11, with some fields changed."""
    golden = {
        "vocab_size": 512,
        "max_seq_len": 64,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 64,
    }
    return GPTConfig(**{**golden, **fields})


def tiny_gpt(compute_dtype: torch.dtype = torch.float32, **fields: Any) -> GPT:
    """Build a small GPT with no zero weights, so that every part of it reaches the logits."""
    model = GPT(tiny_config(**fields), compute_dtype)
    model.init_weights(seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, parameter.size(1) ** -0.5, generator=generator)
    return model
