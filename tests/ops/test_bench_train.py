import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.model.scaling import flops_per_token, gpt_config
from nanoray.ops.bench_train import TrainBench, bench_train
from tests.running import small_corpus

TINY: dict[str, Any] = {
    "depth": 1,
    "head_dim": 32,
    "vocab_size": 400,
    "max_seq_len": 64,
    "total_batch_tokens": 1024,
    "device_batch_size": 4,
    "dtype": "float32",
    "eager": True,
    "skip_seconds": 0.2,
    "seconds": 0.5,
}


def test_the_loop_is_timed_without_ray_and_the_result_is_kept(tmp_path: Path) -> None:
    data, output = small_corpus(tmp_path), tmp_path / "result.json"

    printed = bench_train(TrainBench(data=str(data), output=str(output), **TINY))

    result = json.loads(printed)
    assert json.loads(output.read_text()) == result
    shape = gpt_config(1, 400, head_dim=32, max_seq_len=64)
    flops = result["tokens_per_second"] * flops_per_token(shape)
    assert result["mfu"] == pytest.approx(flops / result["peak_flops"])
    assert result["steps"] >= 1
    assert 0 <= result["data_wait_share"] < 1
    assert result["last_loss"] < 5.99  # ln(400): it has learned something


def test_too_short_a_time_is_refused(tmp_path: Path) -> None:
    config = TrainBench(data=str(small_corpus(tmp_path)), **{**TINY, "seconds": 0.0})

    with pytest.raises(InputError, match=r"--seconds 0\.0 is less than one step"):
        bench_train(config)


def test_a_machine_without_ray_can_run_the_benchmark(tmp_path: Path) -> None:
    block_ray = "import sys, runpy; sys.modules['ray'] = None; sys.argv = sys.argv[1:]; "
    run = "runpy.run_path(sys.argv[0], run_name='__main__')"
    job = Path(__file__).parents[2] / "jobs" / "bench.py"
    flags = {name: value for name, value in TINY.items() if name != "eager"}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    given.append(f"--data={small_corpus(tmp_path)}")

    result = subprocess.run(
        [sys.executable, "-c", block_ray + run, str(job), "train", "--eager", *given],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["tokens_per_second"] > 0
