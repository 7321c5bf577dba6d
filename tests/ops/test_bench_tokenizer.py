import json
from pathlib import Path

import pytest

from tests.running import Cluster, run_job, small_corpus


@pytest.mark.cluster
def test_the_benchmark_times_training_beside_rustbpe_and_encoding(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    data = small_corpus(tmp_path)

    code, output = run_job(
        "bench.py",
        *("tokenizer", "--data", data, "--vocab-size", 400, "--repeats", 1),
        env=ray_cluster.environment(),
    )

    assert code == 0, output
    result = json.loads(output.splitlines()[-1])
    times = ("train_seconds", "count_seconds", "merge_seconds", "rustbpe_seconds")
    assert all(result[name] > 0 for name in times)
    assert result["encode_megabytes_per_second"] > 0
    assert result["text_megabytes"] == pytest.approx(0.4, rel=0.1)
