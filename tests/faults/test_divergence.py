"""Poisoned data in a run on a cluster: steps are skipped, the run goes back, and ends well."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanoray.train.guard import POISON_VARIABLE
from tests.faults.test_kill import arguments
from tests.running import run_job, start_cluster


def lines_of(storage: Path, name: str) -> list[dict[str, Any]]:
    text = (storage / "bad" / "pretrain" / name).read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.cluster
@pytest.mark.slow
def test_a_run_goes_back_and_past_poisoned_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    # Workers have the environment of their cluster, not that of the job. About nine steps begin in
    # each unit; after eight units the guard knows enough norms.
    monkeypatch.setenv(POISON_VARIABLE, "9-9:1e6")
    cluster = start_cluster(4)
    try:
        code, output = run_job(
            "pretrain.py", *arguments(tmp_path, "bad", 2, steps=120), env=cluster.environment()
        )
    finally:
        cluster.stop()

    assert code == 0, output
    assert "5 in a row" in output
    assert "rollback 1 of at most 3" in output
    metrics, ledger = lines_of(tmp_path, "metrics.jsonl"), lines_of(tmp_path, "ledger.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 121))
    rollbacks = json.loads((tmp_path / "bad" / "pretrain" / "rollbacks.json").read_text())
    decided = rollbacks["rollbacks"][-1]
    [gap] = [line for line in ledger if "left_out_from" in line]
    assert gap["step"] == decided["step"] + 1
    assert (gap["left_out_from"], gap["first"]) == (decided["first"], decided["next"])
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"] - 0.5
    assert metrics[-1]["goodput/recomputed_seconds"] > 0
