"""What Ray costs: the same training loop fed by Ray Data, and alone in a plain process."""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nanoray.config import RunFailedError
from nanoray.data.datasets import EMBEDDED

JOBS = Path(__file__).parents[2] / "jobs"


@dataclass(frozen=True, kw_only=True)
class StreamBench:
    """Compare a Ray Train worker with its Ray Data stream to the same loop in a plain process."""

    data: str = EMBEDDED
    """Folder or glob of parquet files."""
    depth: int = 4
    """Transformer blocks."""
    device_batch_size: int = 8
    """Rows per forward pass."""
    total_batch_tokens: int = 16_384
    """Tokens per step."""
    skip_seconds: float = 60.0
    """Time after the first step that does not count."""
    seconds: float = 120.0
    """Time that counts, of each of the two."""
    repeats: int = 2
    """How often the two take turns."""
    save_every: int = 50
    """Steps between checkpoints, to measure how long each one stops training."""


def bench_stream(config: StreamBench) -> str:
    """Run both by turns; gives medians and their ratio as one line of JSON."""
    plain, streamed, waits, stalls = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="nanoray-bench-") as folder:
        tokenizer = f"{folder}/tokenizer.json"
        vocabulary = ["--data", config.data, "--vocab-size", "8192"]
        _run("tokenizer.py", [*vocabulary, "--output", tokenizer])
        for repeat in range(config.repeats):
            rate = run_plain(config, tokenizer, folder)
            steps = run_streamed(config, tokenizer, folder, repeat, rate)
            plain.append(rate)
            streamed.append(config.total_batch_tokens / statistics.median(_seconds(steps)))
            waits.append(sum(s["train/data_wait_seconds"] for s in steps) / sum(_seconds(steps)))
            stalls += [
                s["checkpoint/stall_seconds"] for s in steps if "checkpoint/stall_seconds" in s
            ]
            print(  # noqa: T201 (a benchmark of minutes says how far it is)
                f"plain {plain[-1]:,.0f} tokens/s, Ray {streamed[-1]:,.0f} tokens/s", flush=True
            )
    result = {
        "benchmark": "stream",
        "depth": config.depth,
        "plain_tokens_per_second": statistics.median(plain),
        "ray_tokens_per_second": statistics.median(streamed),
        "ratio": statistics.median(r / p for r, p in zip(streamed, plain, strict=True)),
        "data_wait_share": statistics.median(waits),
        "checkpoint_stall_seconds": statistics.median(stalls) if stalls else None,
    }
    return json.dumps(result)


def shape_flags(config: StreamBench) -> list[str]:
    """Give the flags that both have in common."""
    flags = {
        "--depth": config.depth,
        "--device-batch-size": config.device_batch_size,
        "--total-batch-tokens": config.total_batch_tokens,
    }
    return [str(part) for flag in flags.items() for part in flag]


def run_plain(config: StreamBench, tokenizer: str, folder: str) -> float:
    """Measure the loop alone, in tokens per second."""
    output = f"{folder}/plain.json"
    arguments = ["train", "--data", config.data, "--tokenizer", tokenizer, "--output", output]
    arguments += shape_flags(config)
    arguments += ["--skip-seconds", str(config.skip_seconds), "--seconds", str(config.seconds)]
    _run("bench.py", arguments)
    rate: float = json.loads(Path(output).read_text())["tokens_per_second"]
    return rate


def run_streamed(
    config: StreamBench, tokenizer: str, folder: str, repeat: int, rate: float
) -> list[dict[str, Any]]:  # Any: JSON
    """Run the real job for as long, and give its steps after the first minute."""
    seconds = config.skip_seconds + config.seconds
    num_steps = max(10, int(seconds * rate / config.total_batch_tokens))
    run = f"bench-{repeat}"
    arguments = ["--run", run, "--storage", folder, "--data", config.data, "--tokenizer", tokenizer]
    arguments += shape_flags(config)
    arguments += ["--num-steps", str(num_steps), "--save-every", str(config.save_every)]
    arguments += ["--validate-every", str(num_steps), "--validation-tokens", "512"]
    _run("pretrain.py", arguments)
    lines = Path(folder, run, "pretrain", "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    return [s for s in steps if s["time"] - steps[0]["time"] > config.skip_seconds]


def _seconds(steps: list[dict[str, Any]]) -> list[float]:  # Any: JSON
    """Give the wall time of each step: from the end of the one before, whatever it was spent on."""
    ends = [step["time"] for step in steps]
    return [after - before for before, after in pairwise(ends)]


def _run(job: str, arguments: list[str]) -> None:
    """Run a job in a process of its own.

    Raises:
        RunFailedError: it failed; it has said why.
    """
    done = subprocess.run([sys.executable, JOBS / job, *arguments], stdout=sys.stderr, check=False)
    if done.returncode:
        words = shlex.join([f"jobs/{job}", *arguments])
        raise RunFailedError(f"`{words}` ended with exit code {done.returncode}; see above.")
