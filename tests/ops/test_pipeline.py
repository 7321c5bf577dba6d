"""The whole path as one job: what is done is skipped, what is half done goes on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoray.config import InputError, RunConfig, to_json
from nanoray.data.manifest import make_manifest
from nanoray.events import append_event
from nanoray.ops.pipeline import (
    PipelineConfig,
    differences,
    facts_of,
    run_once,
    stage_config,
    stages_to_check,
    told,
)
from nanoray.ops.pipeline_page import StageFacts
from nanoray.ops.report import summary_of
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.stages.start import hub_fingerprints, keep_start, open_later_stage, stage_before
from nanoray.storage import RunFolder, read_json, write_json
from nanoray.task import Example
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from tests.running import TINY, Cluster, kill_job, run_job, small_corpus, start_job, wait_for_step
from tests.saved_model import save_model
from tests.stages.chats import FLAGS, save_base
from tests.support import tiny_gpt, tiny_tokenizer


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
        "simplespelling",
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


@pytest.mark.slow
@pytest.mark.cluster
def test_a_pipeline_skips_what_is_done_and_makes_anew_what_has_changed(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    env = ray_cluster.environment()
    code, output = run_job("pipeline.py", *command(tmp_path, "midtrain"), env=env, timeout=600)
    assert code == 0, output
    assert attempts(tmp_path) == 2
    assert "| p | BASE | MID |" in output
    page = (tmp_path / "p/report.html").read_text()
    for said in ("Report card", "What it took", "midtrain/report.html", "Identity"):
        assert said in page

    changed = command(tmp_path, "midtrain", "--midtrain.lr-fraction", 0.1)
    code, output = run_job("pipeline.py", *changed, env=env, timeout=600)
    assert code == 0, output
    assert attempts(tmp_path) == 3
    assert "pretrain is done, from the same inputs" in output
    assert "midtrain began with other --lr-fraction, and is made anew" in output
    assert len(list((tmp_path / "p").glob("midtrain.before-*"))) == 1


@pytest.mark.slow
@pytest.mark.cluster
def test_a_pipeline_is_refused_for_a_late_stage_before_its_first_begins(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    for flags, said in (
        (("--sft.mixture", "smalltalk"), "--mixture has 'smalltalk', and there is no such source"),
        (("--rl.tasks", "mmlu"), "--tasks has 'mmlu', and no such task gives rewards"),
        (("--eval-tasks", "gsm8k", "--hub-dir", tmp_path / "none"), "none is no folder"),
    ):
        asked = command(tmp_path, "rl", *map(str, flags))
        code, output = run_job("pipeline.py", *asked, env=ray_cluster.environment())
        assert code == 2, output
        assert said in output
    assert not (tmp_path / "p").exists()


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


def begin(storage: Path, config: FinetuneConfig) -> RunFolder:
    """Write what a finished SFT stage leaves of its inputs."""
    save_base(storage, "r")
    own = replace(config, run="r")
    decided, opened = open_later_stage("sft", own, str(storage))
    keep_start(opened)
    opened.folder.write_config(to_json(replace(decided, lr_fraction=decided.lr_fraction or 0.02)))
    run = RunFolder(str(storage), "r")
    run.mark_done("sft")
    return run


def recorded(given: list[Any]) -> Callable[[Any], str]:
    """Give what stands for the training of a stage, and notes what it is given."""

    def train(config: Any) -> str:
        given.append(config)
        return ""

    return train


class NoLessons:
    name = "made up"

    def __len__(self) -> int:
        return 0

    def example(self, index: int) -> Example:
        raise IndexError(index)


class ReadLessons(NoLessons):
    def __init__(self, *files: str) -> None:
        self.hub_files = files


def test_what_is_left_open_is_as_it_was(tmp_path: Path) -> None:
    run = begin(tmp_path, FinetuneConfig())

    assert differences("sft", FinetuneConfig(log_every=3), run) == ""
    assert differences("sft", FinetuneConfig(lr_fraction=0.02), run) == ""  # the default
    assert differences("sft", FinetuneConfig(epochs=2.0, lr_fraction=0.1), run) == (
        "--epochs and --lr-fraction"
    )


def test_a_name_that_no_run_can_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"--run 'a\*' cannot name a folder"):
        PipelineConfig(run="a*")


@pytest.mark.parametrize("name", ["r", "r/pretrain", "r/pretrain@10"])
def test_a_checkpoint_may_be_named_without_its_step(tmp_path: Path, name: str) -> None:
    run = begin(tmp_path, FinetuneConfig())

    assert differences("sft", FinetuneConfig(from_=name), run) == ""
    base = run.stage("pretrain")
    save_model(base, tiny_gpt(vocab_size=tiny_tokenizer().vocab_size), tiny_tokenizer(), (20,))
    changed = differences("sft", FinetuneConfig(from_=name), run)
    assert ("--from" in changed) == ("@" not in name)


def test_other_weights_and_other_contents_of_a_file_are_differences(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("one")
    config = FinetuneConfig(words=str(words))
    run = begin(tmp_path, config)
    assert differences("sft", config, run) == ""

    words.write_text("two")
    assert differences("sft", config, run) == "contents of --words"
    run.stage("pretrain").move_aside()
    model = tiny_gpt(vocab_size=tiny_tokenizer().vocab_size)
    save_model(run.stage("pretrain"), model, tiny_tokenizer())
    assert "weights of r/pretrain@10" in differences("sft", config, run)


def test_another_folder_for_the_hub_is_a_difference(tmp_path: Path) -> None:
    write_text(tmp_path / "hub/org.parquet", "one")
    write_text(tmp_path / "hub/unread.parquet", "one")
    shutil.copytree(tmp_path / "hub", tmp_path / "same")
    config = FinetuneConfig(hub_dir=str(tmp_path / "hub"))
    run = begin(tmp_path, config)
    stage = run.stage("sft")
    lessons = ReadLessons(str(tmp_path / "hub/org.parquet"))
    hub = hub_fingerprints([lessons, NoLessons()], config.hub_dir)
    began = read_json(run.fs, stage.path("start.json")) or {}
    write_json(run.fs, stage.path("start.json"), {**began, "hub": hub})

    write_text(tmp_path / "hub/unread.parquet", "two")
    assert differences("sft", config, run) == ""
    assert differences("sft", FinetuneConfig(hub_dir=str(tmp_path / "same")), run) == ""
    assert differences("sft", FinetuneConfig(hub_dir=str(tmp_path / "none")), run) == ""
    write_text(tmp_path / "same/org.parquet", "two")
    changed = differences("sft", FinetuneConfig(hub_dir=str(tmp_path / "same")), run)
    assert changed == "contents of --hub-dir"


def test_a_stage_that_has_changed_begins_afresh_and_pretraining_never_does(tmp_path: Path) -> None:
    run, given = begin(tmp_path, FinetuneConfig()), list[Any]()
    run.stage("pretrain").write_config(to_json(PretrainConfig(depth=1)))
    write_json(run.fs, run.stage("sft").path("report.json"), {})

    run_once("sft", FinetuneConfig(), run, recorded(given))
    assert given == []
    run_once("sft", FinetuneConfig(fresh=True), run, recorded(given))
    run_once("sft", FinetuneConfig(epochs=2.0), run, recorded(given))
    run_once("pretrain", PretrainConfig(depth=2), run, recorded(given))

    assert [config.fresh for config in given] == [True, True, False]


def pretrained(storage: Path, data: Path) -> RunFolder:
    """Write what a finished pretraining leaves of its inputs."""
    save_base(storage, "r")
    run = RunFolder(str(storage), "r")
    stage = run.stage("pretrain")
    stage.write_config(to_json(PretrainConfig(data=str(data))))
    manifest = make_manifest(str(data), "text")
    write_json(run.fs, stage.path("manifest.json"), manifest.to_json())
    return run


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"text": [text] * 9}), path)
    return path.parent


def test_pretraining_is_not_done_from_files_that_were_replaced(tmp_path: Path) -> None:
    data = write_text(tmp_path / "data/a.parquet", "one")
    run = pretrained(tmp_path, data)
    config = PretrainConfig(data=str(data))
    assert differences("pretrain", config, run) == differences("pretrain", PretrainConfig(), run)
    assert differences("pretrain", config, run) == ""

    write_text(data / "b.parquet", "more")  # data of a later run
    assert differences("pretrain", config, run) == ""
    write_text(data / "a.parquet", "others")
    assert differences("pretrain", config, run) == "contents of --data"
    data.rename(tmp_path / "gone")  # to save room, once they are not needed any more
    assert differences("pretrain", config, run) == ""


def test_pretraining_is_not_done_with_another_tokenizer(tmp_path: Path) -> None:
    run = pretrained(tmp_path, write_text(tmp_path / "data/a.parquet", "one"))
    other = str(tmp_path / "tokenizer.json")
    save_tokenizer(Tokenizer([(104, 105)]), other)

    own = PretrainConfig(tokenizer=run.tokenizer_file)
    assert differences("pretrain", own, run) == ""
    assert differences("pretrain", PretrainConfig(tokenizer=other), run) == "--tokenizer"


def test_a_stage_whose_folder_was_deleted_is_made_again(tmp_path: Path) -> None:
    run, given = begin(tmp_path, FinetuneConfig()), list[Any]()
    run.stage("sft").move_aside()

    run_once("sft", FinetuneConfig(), run, recorded(given))

    assert given == [FinetuneConfig()]


def test_a_stage_that_ended_before_its_evaluations_and_its_report_gets_them(tmp_path: Path) -> None:
    run, given = begin(tmp_path, FinetuneConfig()), list[Any]()

    run_once("sft", FinetuneConfig(), run, recorded(given))

    assert given == [FinetuneConfig()]


def test_a_finished_stage_stays_when_what_it_was_made_from_is_gone(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("one")
    config = FinetuneConfig(words=str(words))
    run = begin(tmp_path, config)

    words.unlink()
    shutil.rmtree(run.stage("pretrain").path("checkpoints"))

    assert differences("sft", config, run) == ""
    assert differences("sft", FinetuneConfig(epochs=2.0, words=str(words)), run) == "--epochs"


def test_no_stage_starts_from_an_older_one_because_checkpoints_are_gone(tmp_path: Path) -> None:
    run = begin(tmp_path, FinetuneConfig())

    with pytest.raises(InputError, match=r"r/sft is finished, and its checkpoints are gone"):
        stage_before(run.stage("rl"))


def test_sources_are_read_where_they_will_be_needed(tmp_path: Path) -> None:
    run = begin(tmp_path, FinetuneConfig())
    same: dict[str, RunConfig] = {"pretrain": PretrainConfig(), "sft": FinetuneConfig()}

    assert stages_to_check({**same, "rl": RLConfig()}, run) == ["pretrain", "rl"]
    write_json(run.fs, run.path("run.json"), {"stages_done": ["pretrain"]})
    assert stages_to_check(same, run) == ["pretrain", "sft"]
    run.fs.makedirs(run.stage("sft").path("mixture"))
    write_json(run.fs, run.stage("sft").path("mixture/mixture.json"), {})
    assert stages_to_check(same, run) == ["pretrain"]
    run.stage("pretrain").write_config(to_json(PretrainConfig()))
    changed = FinetuneConfig(mixture="identity=2")
    assert stages_to_check({**same, "sft": changed}, run) == ["sft"]


def test_stages_after_the_last_that_is_asked_for_are_not_told_of(tmp_path: Path) -> None:
    run = begin(tmp_path, FinetuneConfig())
    facts = [StageFacts(name, 1.0, None, None, {}, []) for name in ("pretrain", "midtrain", "sft")]

    assert told(run, facts).endswith(f"jobs/serve.py --run r/sft --storage {tmp_path}")
    facts += [StageFacts("rl", 1.0, None, None, {}, []), StageFacts.of_evaluation(1.0)]
    assert told(run, facts).endswith(f"jobs/serve.py --run r --storage {tmp_path}")


def test_a_stage_costs_what_its_own_groups_held_whatever_the_cluster_has(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")
    append_event(folder, "start", time=0)
    append_event(folder, "begin", time=100, dollars_per_hour=8 * 2.5)
    append_event(folder, "stop", time=1900, why="interrupted")
    append_event(folder, "start", time=5000)
    append_event(folder, "begin", time=5100, dollars_per_hour=4 * 2.5)
    append_event(folder, "stop", time=6900, why="done")

    facts = facts_of(folder)

    assert facts.dollars == summary_of(folder)["dollars"] == pytest.approx(10 + 5)
    assert "all  65 min, $15.00 for training; evaluations are not counted" in told(
        folder.run, [facts, StageFacts.of_evaluation(100)]
    )


def test_what_was_asked_decides_how_far_it_goes() -> None:
    assert PipelineConfig(until="midtrain").stages == ("pretrain", "midtrain")
    assert PipelineConfig().stages == ("pretrain", "midtrain", "sft", "rl")
