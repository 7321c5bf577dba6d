"""A tiny base model and conversations for it, for the stages that come after pretraining."""

import json
import random
from pathlib import Path
from typing import Any

from nanoray.storage import RunFolder
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer

T = 64
FLAGS: tuple[object, ...] = (
    "--eager",
    *("--threads-per-worker", 1),
    *("--cpus-per-worker", 1),
    *("--total-batch-tokens", 1024),
    *("--device-batch-size", 4),
    *("--validation-tokens", 512),
    *("--matrix-lr", 0.005),
)


def save_base(storage: Path, run: str) -> None:
    """Write a finished pretraining stage of a model with D=32."""
    shape: dict[str, Any] = {
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 32,
        "max_seq_len": T,
    }
    tokenizer = tiny_tokenizer()
    model = tiny_gpt(**shape, vocab_size=tokenizer.vocab_size)
    save_model(RunFolder(str(storage), run).stage("pretrain"), model, tokenizer)


def write_chats(path: Path, count: int = 2000) -> Path:
    """Write conversations as JSON lines: some are too long, some have no answer."""
    rng = random.Random(0)
    lines = []
    for number in range(count):
        turns = [{"role": "user", "content": f"question {number} " + "x" * rng.randrange(20)}]
        if number % 10:
            turns += [{"role": "assistant", "content": f"answer {number} " * rng.randrange(1, 9)}]
        lines.append(json.dumps({"messages": turns}))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    return path
