"""Checkpoints of a run that trains, evaluated beside it: results at their steps, and no harm."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from evals.exam_plan import ExamPlan
from evals.watch import CheckpointWatch, headline, metrics_of
from nanoray.cluster import connection
from nanoray.cluster.connection import Resources
from nanoray.stages.pretrain import recipe_of
from nanoray.stages.pretrain_config import PretrainConfig, decide
from nanoray.storage import RunFolder
from nanoray.train.checkpoint_name import SavedModel
from tests.driver import connected
from tests.evals.small_bundle import write_bundle
from tests.evals.test_results import ONE, TWO, report
from tests.evals.test_run import BrokenExam
from tests.running import ROOT, TINY, Cluster, read_run, run_job, small_corpus
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer


def pretrain(cluster: Cluster, storage: Path, run: str, *flags: object) -> tuple[int, str]:
    data = small_corpus(storage / "data")
    command = ("--run", run, "--storage", storage, "--data", data, "--num-steps", 60, *TINY)
    return run_job("pretrain.py", *command, *flags, env=cluster.environment())


def records_of(storage: Path, run: str) -> list[dict[str, Any]]:
    lines = (storage / run / "pretrain/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_with_evaluations_is_the_run_without(ray_cluster: Cluster, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    code, output = pretrain(ray_cluster, tmp_path, "calm")
    assert code == 0, output

    watched = ("--core-every", 20, "--eval-bundle", bundle, "--keep-last", 1)
    code, output = pretrain(ray_cluster, tmp_path, "watched", *watched)

    assert code == 0, output
    assert read_run(tmp_path, "watched") == read_run(tmp_path, "calm")
    records = records_of(tmp_path, "watched")
    assert [r["step"] for r in records if "eval/core" in r] == [20, 40, 60]
    assert all("eval/colors" in r for r in records if "eval/core" in r)
    assert [line for line in output.splitlines() if "step 40: CORE" in line]
    stage = tmp_path / "watched/pretrain"
    assert len(list((stage / "evals").glob("step_*/report-*.json"))) == 3
    page = (stage / "report.html").read_text()
    assert "<h2>Report card</h2>" in page
    assert "mean of centred accuracies" in page

    again = pretrain(ray_cluster, tmp_path, "watched", *watched)
    assert again[0] == 0
    assert "step 40: CORE" not in again[1]


class WatchedRun:
    """What a watch needs to know of a run."""

    num_steps = 20

    def __init__(self, storage: Path, *, use_gpu: bool = False, num_workers: int = 1) -> None:
        self.storage = str(storage)
        self.folder = RunFolder(self.storage, "r").stage("pretrain")
        config = decide(PretrainConfig(core_every=20, depth=1), on_gpu=False, dtype="float32")
        self.config, self.recipe = config, recipe_of(config)
        self.resources = Resources((1, num_workers), use_gpu, 1.0, 1, 1)


def watch_of(run: Any, *exams: Any) -> CheckpointWatch:  # Any: stand-ins
    plan = ExamPlan(list(exams), {e.name: len(e) for e in exams}, {"core": ("broken",)}, {}, {})
    return CheckpointWatch(run, plan)


@pytest.fixture
def run(tmp_path: Path) -> WatchedRun:
    watched = WatchedRun(tmp_path)
    tokenizer = tiny_tokenizer()
    save_model(watched.folder, tiny_gpt(vocab_size=tokenizer.vocab_size), tokenizer, (7, 15, 20))
    return watched


@pytest.mark.cluster
def test_an_evaluation_that_can_never_work_is_left_out(
    ray_cluster: Cluster, run: WatchedRun, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(run, BrokenExam())

    with connected(ray_cluster, PYTHONPATH=str(ROOT)):
        waiting = watch.waiting()
        watch.start()
        watch.finish()

    assert waiting == [20]
    assert "step 20 could not be evaluated, it is left out: These questions are no" in caplog.text
    assert watch.waiting() == []


def test_what_may_work_later_is_tried_later(run: WatchedRun) -> None:
    watch = watch_of(run)
    pauses = []

    for _ in range(4):
        watch._put_off(20, OSError("storage"))
        pauses.append(watch.not_before[20] - time.monotonic())

    assert pauses[:3] == pytest.approx([5, 60, 600], abs=1)
    assert pauses[3] == math.inf
    assert SavedModel(run.folder, 20).is_evaluated()


@pytest.mark.parametrize(("gpus", "workers", "actors"), [(8, 8, 0), (8, 6, 2), (4, 6, 0)])
def test_only_gpus_count_that_no_worker_could_want(
    tmp_path: Path, gpus: int, workers: int, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "gpus_present", lambda: gpus)
    watch = watch_of(WatchedRun(tmp_path, use_gpu=True, num_workers=workers))

    crew = watch.crew()

    assert (crew.num_actors if crew else 0) == actors
    if crew:
        assert (crew.gpus_each, crew.cpus_each) == (1, 0)


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

    assert metrics_of(half) == {"eval/one": 0.75}
    assert set(metrics_of(whole)) == {
        "eval/one",
        "eval/two",
        "eval/core",
        "eval/core_low",
        "eval/core_high",
    }
    assert headline(20, whole).startswith("step 20: CORE 0.3333 (")
    assert headline(20, half) == "step 20: one 0.7500"
