"""How trials stand, as their folders tell."""

import json
from pathlib import Path

import pytest

from nanoray.model.gpt import GPT
from nanoray.model.scaling import num_parameters
from nanoray.ops.trial_rows import (
    folder_of,
    forget_outcome,
    read_outcome,
    row_of,
    seconds_spent,
    write_outcome,
)
from nanoray.ops.trial_table import Status
from nanoray.ops.trials import Grid, Surroundings, Trial, plan_trials
from nanoray.stages.pretrain_config import PretrainConfig, model_config
from nanoray.storage import write_json


def trial(storage: Path) -> Trial:
    """Give a small trial that has not begun."""
    base = PretrainConfig(vocab_size=512, max_seq_len=64, total_batch_tokens=1024, num_workers="2")
    around = Surroundings(False, "float32", str(storage), "tokenizer", "manifest")
    return plan_trials(base, Grid((2,), (1.0,), (), (42,)), around)[0]


def write_steps(one: Trial, steps: int, **last: float) -> None:
    """Write metrics as training does."""
    folder = folder_of(one)
    records: list[dict[str, float]] = [
        {
            "step": step,
            "train/step_seconds": 0.5,
            "train/tokens_per_second": 100.0 * step,
            "goodput/productive_seconds": 0.5 * step,
            "goodput/start_up_seconds": 7.0,
        }
        for step in range(1, steps + 1)
    ]
    records[-1] |= last
    Path(folder.path()).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    Path(folder.path("metrics.jsonl")).write_text(lines)


def test_a_trial_that_has_not_begun_waits_with_all_that_is_planned(tmp_path: Path) -> None:
    one = trial(tmp_path)
    model = GPT(model_config(one.config))

    row = row_of(one, "cpu")

    assert row.status is Status.WAITING
    assert row.parameters == sum(p.numel() for p in model.parameters())
    assert row.matrix_parameters == sum(p.numel() for p in model.blocks.parameters())
    assert row.scaling_parameters == num_parameters(model.config) - model.embedding.weight.numel()
    assert (row.num_workers, row.device, row.bits_per_byte) == (2, "cpu", None)


def test_a_finished_trial_has_its_result(tmp_path: Path) -> None:
    one = trial(tmp_path)
    write_steps(one, 4, **{"validation/bits_per_byte": 1.5})
    folder_of(one).run.mark_done("pretrain")
    write_json(folder_of(one).fs, folder_of(one).path("result.json"), {"peak_memory_bytes": 2**30})

    row = row_of(one, "cpu")

    assert (row.status, row.bits_per_byte) == (Status.DONE, 1.5)
    assert row.worker_seconds == 2 * 4 * 0.5
    assert row.tokens_per_second == 250.0
    assert row.peak_memory_bytes == 2**30
    assert seconds_spent(one) == pytest.approx(2 * (2.0 + 7.0))


def test_a_finished_trial_without_a_finite_result_has_diverged(tmp_path: Path) -> None:
    one = trial(tmp_path)
    write_steps(one, 4, **{"validation/bits_per_byte": float("nan")})
    folder_of(one).run.mark_done("pretrain")

    row = row_of(one, "cpu")

    assert row.status is Status.DIVERGED
    assert row.bits_per_byte is None
    assert "step 4 gave nan bits per byte" in row.reason


def test_why_a_trial_ended_is_kept_until_it_is_started_again(tmp_path: Path) -> None:
    one = trial(tmp_path)

    write_outcome(one, Status.FAILED, "the disk is full")
    assert read_outcome(one) == (Status.FAILED, "the disk is full")
    forget_outcome(one)
    forget_outcome(one)

    assert read_outcome(one) == (Status.WAITING, "")


def test_steps_of_another_trial_are_not_counted_as_its_own(tmp_path: Path) -> None:
    one = trial(tmp_path)
    write_steps(one, 4)
    write_json(folder_of(one).fs, folder_of(one).path("branch.json"), {"from": "x", "step": 3})

    row = row_of(one, "cpu")

    assert row.steps_taken_over == 3
    assert row.worker_seconds == 2 * 0.5


def test_a_branch_without_a_step_of_its_own_has_the_result_of_its_trunk(tmp_path: Path) -> None:
    one = trial(tmp_path)
    write_steps(one, 4, **{"validation/bits_per_byte": 1.5})
    write_json(folder_of(one).fs, folder_of(one).path("branch.json"), {"from": "x", "step": 4})
    folder_of(one).run.mark_done("pretrain")

    row = row_of(one, "cpu")

    assert (row.status, row.bits_per_byte, row.worker_seconds) == (Status.DONE, 1.5, 0.0)


def test_core_of_the_last_step_stands_in_the_row(tmp_path: Path) -> None:
    one = trial(tmp_path)
    write_steps(one, 4, **{"validation/bits_per_byte": 1.5})
    folder = folder_of(one)
    folder.run.mark_done("pretrain")
    task = {
        "name": "copa",
        "group": "core",
        "suite": ["copa"],
        "num_examples": 10,
        "is_sample": True,
    }
    for step, value in ((2, 0.5), (4, 0.25)):
        means = {"CORE": {"value": value, "interval_95": [0, 1]}}
        report = {"step": step, "tasks": [task], "means": means}
        write_json(folder.fs, folder.path(f"evals/step_{step:06d}/report-a.json"), report)

    row = row_of(one, "cpu")

    assert (row.core, row.is_core_sample) == (0.25, True)
