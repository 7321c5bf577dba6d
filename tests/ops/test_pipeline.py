"""The whole path as one job: what is done is skipped, what is half done goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanoray.ops.pipeline import PipelineConfig, inputs_hash, pipeline, run_once, stage_config
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.storage import RunFolder
from tests.running import TINY, Cluster, kill_job, run_job, small_corpus, start_job, wait_for_step
from tests.stages.chats import FLAGS, save_base


def prefixed(stage: str, flags: tuple[object, ...]) -> list[object]:
    """Give flags of a stage as the pipeline takes them."""
    return [
        f"--{stage}.{flag.removeprefix('--')}"
        if isinstance(flag, str) and flag.startswith("--")
        else flag
        for flag in flags
    ]


def command(storage: Path, until: str, *more: object) -> list[object]:
    mixture: tuple[object, ...] = (
        "--mixture",
        "identity=200,simplespelling=300",
        "--num-steps",
        12,
    )
    rl: tuple[object, ...] = (
        "--tasks",
        "identity",
        "--num-steps",
        3,
        "--examples-per-step",
        2,
        "--num-samples",
        2,
    )
    rl += ("--max-new-tokens", 8, "--validation-questions", 2, "--validation-samples", 2)
    rl += ("--eager", "--threads-per-worker", 1, "--cpus-per-worker", 1, "--save-every", 1)
    return [
        *("--run", "p", "--storage", storage, "--until", until, "--words", "embedded"),
        *prefixed("pretrain", (*TINY, "--data", small_corpus(storage / "data"), "--num-steps", 10)),
        *prefixed("midtrain", (*FLAGS, *mixture, "--save-every", 4)),
        *prefixed("sft", (*FLAGS, *mixture, "--save-every", 4)),
        *prefixed("rl", rl),
        *("--eval-tasks", "identity", "--eval-max-per-task", 4),
        *more,
    ]


def attempts(storage: Path) -> int:
    return int(json.loads((storage / "p/run.json").read_text())["attempt"])


@pytest.mark.cluster
def test_a_pipeline_skips_what_is_done_and_makes_anew_what_has_changed(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    code, output = run_job("pipeline.py", *command(tmp_path, "sft"), env=env, timeout=600)
    assert code == 0, output
    assert attempts(tmp_path) == 3
    assert "| p | BASE | MID | SFT |" in output
    page = (tmp_path / "p/report.html").read_text()
    for said in ("Report card", "What it took", "sft/report.html", "Identity"):
        assert said in page

    code, output = run_job("pipeline.py", *command(tmp_path, "sft"), env=env, timeout=600)
    assert code == 0, output
    assert attempts(tmp_path) == 3
    assert output.count("is done, from the same inputs") == 3

    changed = command(tmp_path, "sft", "--sft.lr-fraction", 0.1)
    code, output = run_job("pipeline.py", *changed, env=env, timeout=600)
    assert code == 0, output
    assert attempts(tmp_path) == 4
    assert "sft was made from other inputs, and is made anew" in output
    assert len(list((tmp_path / "p").glob("sft.before-*"))) == 1


@pytest.mark.cluster
@pytest.mark.slow
def test_a_pipeline_that_is_killed_goes_on_where_it_was(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    for stage, step in (("midtrain", 5), ("sft", 5), ("rl", 1)):
        process = start_job("pipeline.py", *command(tmp_path, "rl"), env=env)
        wait_for_step(process, tmp_path, "p", step, stage=stage)
        kill_job(process)

    code, output = run_job("pipeline.py", *command(tmp_path, "rl"), env=env, timeout=600)

    assert code == 0, output
    assert attempts(tmp_path) == 7
    assert "| p | BASE | MID | SFT | RL |" in output


def test_a_stage_gets_what_is_said_for_all_of_them() -> None:
    config = PipelineConfig(depth=3, words="embedded", sft=FinetuneConfig(epochs=2.0))

    base, sft = (stage_config(config, stage, "r", "runs") for stage in ("pretrain", "sft"))

    assert isinstance(base, PretrainConfig)
    assert (base.run, base.depth) == ("r", 3)
    assert isinstance(sft, FinetuneConfig)
    assert (sft.words, sft.epochs, sft.storage) == ("embedded", 2.0, "runs")


def test_inputs_are_the_settings_that_decide_and_the_weights(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    run = RunFolder(str(tmp_path), "r")
    own = inputs_hash("sft", FinetuneConfig(), run)

    assert inputs_hash("sft", FinetuneConfig(log_every=3), run) == own
    assert inputs_hash("sft", FinetuneConfig(epochs=2.0), run) != own
    run.forget_stage("pretrain")
    assert inputs_hash("sft", FinetuneConfig(), run) != own


def test_a_stage_that_was_begun_with_other_inputs_begins_afresh(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    run, given = RunFolder(str(tmp_path), "r"), list[Any]()

    def train(config: Any) -> str:
        given.append(config)
        return ""

    for epochs in (1.0, 1.0, 2.0):
        run_once("sft", FinetuneConfig(epochs=epochs), run, train)

    assert [config.fresh for config in given] == [False, False, True]


def test_what_was_asked_decides_how_far_it_goes() -> None:
    assert PipelineConfig(until="midtrain").stages == ("pretrain", "midtrain")
    assert PipelineConfig().stages == ("pretrain", "midtrain", "sft", "rl")
    assert callable(pipeline)
