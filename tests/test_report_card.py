"""The card: of each stage the newest and fullest results."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanoray.report_card import read_card
from nanoray.storage import RunFolder


def task(name: str, group: str, accuracy: float, num_examples: int, is_sample: bool) -> Any:
    interval = [accuracy - 0.1, accuracy + 0.1]
    return {
        "name": name,
        "group": group,
        "suite": [name],
        "accuracy": accuracy,
        "interval_95": interval,
        "num_examples": num_examples,
        "is_sample": is_sample,
    }


def write(storage: Path, stage: str, file: str, **report: Any) -> None:
    folder = storage / "r" / stage / "evals" / file[:11]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"report-{file[12:]}").write_text(json.dumps(report))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    core = [task("hellaswag", "core", 0.3, 100, False)]
    means = {"CORE": {"value": 0.2, "interval_95": [0.18, 0.22]}}
    write(tmp_path, "pretrain", "step_000010-a.json", step=10, tasks=core, means=means)
    old = {"CORE": {"value": 0.1, "interval_95": [0.08, 0.12]}}
    write(tmp_path, "pretrain", "step_000005-a.json", step=5, tasks=core, means=old)
    few = [task("GSM8K", "chat", 0.5, 10, True)]
    write(tmp_path, "sft", "step_000007-a.json", step=7, tasks=few, means={})
    all_of_it = [task("GSM8K", "chat", 0.25, 1319, False), task("<i>", "chat", 0, 9, True)]
    write(tmp_path, "sft", "step_000007-b.json", step=7, tasks=all_of_it, means={})
    return RunFolder(str(tmp_path), "r")


def test_of_equal_results_the_newest_is_shown(tmp_path: Path) -> None:
    for file, accuracy, asked_at in (("a", 0.1, 5.0), ("b", 0.2, 9.0), ("c", 0.3, 7.0)):
        tasks = [{**task("GSM8K", "chat", accuracy, 9, True), "asked_at": asked_at}]
        means = {"ChatCORE": {"value": accuracy, "interval_95": [0, 1]}}
        write(tmp_path, "sft", f"step_000007-{file}.json", step=7, tasks=tasks, means=means)

    card = read_card(RunFolder(str(tmp_path), "r"))

    assert card is not None
    assert {metric: row["sft"].value for metric, row in card.scores.items()} == {
        "GSM8K": 0.2,
        "ChatCORE": 0.2,
    }


def test_the_newest_step_counts_and_of_it_what_had_most_examples(run: RunFolder) -> None:
    card = read_card(run)

    assert card is not None
    assert card.markdown() == (
        "| r | BASE | SFT |\n"
        "|---|---:|---:|\n"
        "| CORE | 0.2000 ± 0.0200 |  |\n"
        "| GSM8K |  | 0.2500 ± 0.1000 |\n"
        "| <i> |  | 0.0000 ± 0.1000* |\n"
        "\n"
        "± half of the 95 % interval. * some of the examples only."
    )


def write_rl(storage: Path, started_from: str) -> None:
    folder = storage / "r" / "rl"
    folder.mkdir(parents=True)
    config = {"tasks": "gsm8k", "temperature": 1.0}
    config |= {"validation_questions": 64, "validation_samples": 4}
    steps: list[dict[str, float]] = [{"step": step} for step in range(1, 5)]
    steps[1] |= {"validation/pass_at_1": 0.4, "validation/pass_at_1_error": 0.03}
    steps[2] |= {"validation/pass_at_1": 0.5, "validation/pass_at_1_error": 0.02}
    before = {"validation/pass_at_1": 0.25, "validation/pass_at_1_error": 0.05}
    (folder / "start.json").write_text(json.dumps({"from": started_from}))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "before.json").write_text(json.dumps(before))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))


def test_what_rl_trains_for_stands_beside_what_it_started_from(run: RunFolder) -> None:
    write_rl(Path(run.storage), "r/sft@7")

    card = read_card(run)

    assert card is not None
    lines = card.markdown().splitlines()
    assert lines[0] == "| r | BASE | SFT | RL |"
    drawn = "| gsm8k, drawn at temperature 1 (pass@1) |  | 0.2500 ± 0.0980* | 0.5000 ± 0.0392* |"
    assert drawn in lines


def test_what_rl_measured_of_another_run_is_not_of_a_stage_of_this_one(run: RunFolder) -> None:
    write_rl(Path(run.storage), "other/sft@7")

    card = read_card(run)

    assert card is not None
    drawn = "| gsm8k, drawn at temperature 1 (pass@1) |  |  | 0.5000 ± 0.0392* |"
    assert drawn in card.markdown().splitlines()


def test_a_card_of_some_stages_has_nothing_of_the_others(run: RunFolder) -> None:
    write_rl(Path(run.storage), "r/sft@7")

    card = read_card(run, ["pretrain", "sft"])

    assert card is not None
    assert card.markdown().splitlines()[0] == "| r | BASE | SFT |"
    assert "drawn" not in card.markdown()


def test_names_are_text_on_the_page(run: RunFolder) -> None:
    card = read_card(run)

    assert card is not None
    assert "<th>&lt;i&gt;</th><td></td><td>0.0000 ± 0.1000*</td>" in card.to_html()


def test_a_run_without_results_has_no_card(tmp_path: Path) -> None:
    assert read_card(RunFolder(str(tmp_path), "r")) is None
