"""Checkpoints of a run that trains, evaluated beside it: results at their steps, and no harm."""

import json
from pathlib import Path
from typing import Any

import pytest

from evals.results import EvalReport
from evals.watch import flat, headline
from tests.evals.small_bundle import write_bundle
from tests.evals.test_results import ONE, TWO, report
from tests.running import TINY, Cluster, read_run, run_job, small_corpus


def pretrain(cluster: Cluster, storage: Path, run: str, *flags: object) -> tuple[int, str]:
    data = small_corpus(storage / "data")
    command = ("--run", run, "--storage", storage, "--data", data, "--num-steps", 60, *TINY)
    return run_job("pretrain.py", *command, *flags, env=cluster.environment())


def metrics_of(storage: Path, run: str) -> list[dict[str, Any]]:
    lines = (storage / run / "pretrain/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.cluster
def test_a_run_with_evaluations_is_the_run_without(ray_cluster: Cluster, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    code, output = pretrain(ray_cluster, tmp_path, "calm")
    assert code == 0, output

    watched = ("--core-every", 20, "--eval-bundle", bundle, "--keep-last", 1)
    code, output = pretrain(ray_cluster, tmp_path, "watched", *watched)

    assert code == 0, output
    assert read_run(tmp_path, "watched") == read_run(tmp_path, "calm")
    records = metrics_of(tmp_path, "watched")
    assert [r["step"] for r in records if "eval/core" in r] == [20, 40, 60]
    assert all("eval/colors" in r for r in records if "eval/core" in r)
    assert [line for line in output.splitlines() if "step 40: CORE" in line]
    stage = tmp_path / "watched/pretrain"
    assert len(list((stage / "evals").glob("step_*.json"))) == 3
    page = (stage / "report.html").read_text()
    assert "<h2>Report card</h2>" in page
    assert "mean of centred accuracies" in page

    again = pretrain(ray_cluster, tmp_path, "watched", *watched)
    assert again[0] == 0
    assert "step 40: CORE" not in again[1]


@pytest.mark.cluster
def test_an_evaluation_that_fails_does_not_end_training(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    broken = bundle / "eval_data/b/capitals.jsonl"
    rows = [json.loads(line) for line in broken.read_text().splitlines()]
    broken.write_text("".join(json.dumps({**row, "context": 7}) + "\n" for row in rows))

    watched = ("--core-every", 30, "--eval-bundle", bundle)
    code, output = pretrain(ray_cluster, tmp_path, "watched", *watched)

    assert code == 0, output
    assert "3 of 3 tries); it is left out" in output
    assert not any("eval/core" in record for record in metrics_of(tmp_path, "watched"))


@pytest.mark.cluster
def test_a_bundle_that_is_not_there_is_told_before_training(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    flags = ("--core-every", 30, "--eval-bundle", tmp_path / "nothing.zip")
    code, output = pretrain(ray_cluster, tmp_path, "watched", *flags)

    assert code == 2
    assert "nothing.zip is neither a folder nor a zip file" in output.splitlines()[-1]
    assert not (tmp_path / "watched").exists()


def test_results_have_the_names_of_metrics() -> None:
    whole, half = report(ONE, TWO), report(ONE)

    assert flat(half) == {"eval/one": 0.75}
    assert set(flat(whole)) == {
        "eval/one",
        "eval/two",
        "eval/core",
        "eval/core_low",
        "eval/core_high",
    }
    assert headline(20, whole).startswith("step 20: CORE 0.3333 (")
    assert headline(20, half) == "step 20: 1 tasks"
    assert isinstance(whole, EvalReport)
