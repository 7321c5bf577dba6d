"""The table of benchmarks."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.ops.bench import BENCHMARKS

JOB = Path(__file__).parents[2] / "jobs" / "bench.py"


def test_each_benchmark_has_settings_of_its_own() -> None:
    assert len(set(BENCHMARKS.values())) == len(BENCHMARKS) == 6


@pytest.mark.parametrize("name", ["engine"])
def test_a_benchmark_explains_itself(name: str) -> None:
    done = subprocess.run(
        [sys.executable, str(JOB), name, "--help"], capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0
    assert "--" in done.stdout
