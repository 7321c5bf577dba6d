import json
from pathlib import Path

import pytest

from tests.running import Cluster, run_job


@pytest.mark.cluster
@pytest.mark.slow
def test_ray_is_timed_against_the_plain_loop_in_the_same_run(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    code, output = run_job(
        "bench.py",
        *("stream", "--depth", 1, "--total-batch-tokens", 4096, "--skip-seconds", 3),
        *("--seconds", 6, "--repeats", 1, "--save-every", 5),
        env={**ray_cluster.environment(), "TMPDIR": str(tmp_path)},
    )

    assert code == 0, output
    result = json.loads(output.splitlines()[-1])
    speeds = result["ray_tokens_per_second"], result["plain_tokens_per_second"]
    assert result["ratio"] == pytest.approx(speeds[0] / speeds[1])
    assert result["checkpoint_stall_seconds"] > 0
    assert 0 <= result["data_wait_share"] < 1
    assert list(tmp_path.glob("nanoray-bench-*")) == []


def test_a_process_that_fails_is_told_of_without_a_traceback(tmp_path: Path) -> None:
    code, output = run_job("bench.py", "stream", "--data", tmp_path / "none")

    assert code == 1
    assert f"--data {tmp_path}/none does not exist" in output
    assert output.splitlines()[-1].startswith("error: `jobs/tokenizer.py")
    assert "exit code 2" in output
    assert "Traceback" not in output
