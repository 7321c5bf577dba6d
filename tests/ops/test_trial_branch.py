"""A trial that begins with the steps of a longer one."""

import dataclasses
import json
from pathlib import Path

import pytest

from nanoray.ops.trial_branch import steps_taken_over, take_over
from nanoray.ops.trial_rows import folder_of
from nanoray.ops.trials import Grid, Surroundings, Trial, plan_trials
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.storage import StageFolder, write_json
from nanoray.train.checkpoint_files import committed_steps, newest_verified_step
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer


def pair(storage: Path) -> tuple[Trial, Trial]:
    """Give a trunk and a trial that goes on from its step 6."""
    base = PretrainConfig(vocab_size=512, max_seq_len=64, total_batch_tokens=1024)
    around = Surroundings(False, "float32", str(storage), "tokenizer", "manifest")
    trunk, other = plan_trials(base, Grid((2,), (1.0, 2.0), (), (42,)), around)[::-1]
    return trunk, dataclasses.replace(other, trunk=trunk.name, branch_step=6)


def train_trunk(trunk: Trial) -> StageFolder:
    """Write what the trunk leaves behind."""
    folder = save_model(folder_of(trunk), tiny_gpt(), tiny_tokenizer(), steps=(6, 9))
    for name in ("metrics.jsonl", "ledger.jsonl"):
        lines = [
            {"step": step, "train/loss": 3.0, "goodput/productive_seconds": 1.0 * step}
            | {"cost/dollars": 0.1 * step}
            for step in range(1, 10)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        Path(folder.path(name)).write_text(text)
    return folder


def test_a_branch_gets_the_checkpoint_and_the_logs_up_to_it(tmp_path: Path) -> None:
    trunk, branch = pair(tmp_path)
    train_trunk(trunk)

    take_over(branch)

    folder = folder_of(branch)
    assert newest_verified_step(folder) == 6
    assert committed_steps(folder) == [6]
    assert steps_taken_over(folder) == 6
    for name in ("metrics.jsonl", "ledger.jsonl"):
        lines = [json.loads(line) for line in Path(folder.path(name)).read_text().splitlines()]
        assert lines == [{"step": step, "train/loss": 3.0} for step in range(1, 7)]


def test_a_trial_that_has_begun_is_left_alone(tmp_path: Path) -> None:
    trunk, branch = pair(tmp_path)
    train_trunk(trunk)
    folder_of(branch).write_config({"depth": 2})

    take_over(branch)

    assert committed_steps(folder_of(branch)) == []
    assert steps_taken_over(folder_of(branch)) == 0


@pytest.mark.parametrize("missing", ["the step", "an undisturbed past"])
def test_without_the_same_beginning_a_branch_is_trained_whole(
    tmp_path: Path, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    trunk, branch = pair(tmp_path)
    folder = train_trunk(trunk)
    if missing == "the step":
        branch = dataclasses.replace(branch, branch_step=5)
    else:
        write_json(folder.fs, folder.path("rollbacks.json"), {"rollbacks": []})

    take_over(branch)

    assert not Path(folder_of(branch).path()).exists()
    assert "is trained whole" in caplog.text


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    trunk, branch = pair(tmp_path)
    train_trunk(trunk)
    take_over(branch)
    steps = Path(folder_of(branch).path("checkpoints"))
    (steps / "step_000006").rename(steps / ".step_000006.attempt-0000")
    (steps / ".step_000006.attempt-0000/manifest.json").unlink()
    assert committed_steps(folder_of(branch)) == []

    take_over(branch)

    assert newest_verified_step(folder_of(branch)) == 6
