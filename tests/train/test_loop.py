import json
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoray.data.blocks import DataOrderError
from nanoray.data.plan import Cursor, DataPlan
from nanoray.goodput import CATEGORIES, Account, key
from nanoray.metrics import MetricsLogger, read_metrics
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import committed_steps, newest_verified_step
from nanoray.train.loop import train
from nanoray.train.save_interval import SaveConfig
from nanoray.train.schedule import Schedule
from nanoray.train.validation import BitsPerByte
from nanoray.train.world import AskedToStopError, LocalWorld, RoomForMoreError, Wish
from tests.train.tiny_run import tiny_plan, tiny_state, tiny_steps
from tests.train.tiny_start import next_start, same_arrays, stage_folder, work

EXACT_METRICS = (
    "step",
    "tokens",
    "train/loss",
    "train/grad_norm",
    "train/lr_multiplier",
    "data/position",
    "data/row",
    "validation/bits_per_byte",
)


def metrics_of(storage: Path) -> list[dict[str, Any]]:
    folder = stage_folder(str(storage))
    return read_metrics(folder.fs, folder.path("metrics.jsonl"))


def exact_metrics_of(storage: Path) -> list[dict[str, Any]]:
    """Give what must be the same in every run: no times, no speeds."""
    return [{name: line.get(name) for name in EXACT_METRICS} for line in metrics_of(storage)]


def ledger_of(storage: Path) -> bytes:
    return Path(stage_folder(str(storage)).path("ledger.jsonl")).read_bytes()


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    return tiny_plan(tmp_path / "texts")


@pytest.mark.parametrize("lost_after", [3, 4, 5])
def test_a_run_that_goes_on_in_another_process_equals_the_undisturbed_one(
    ranks, plan, tmp_path, lost_after
):
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    expected = work(LocalWorld(), next_start(plan, calm))

    work(LocalWorld(), next_start(plan, disturbed, lost_after=lost_after))
    again = next_start(plan, disturbed)
    [result] = ranks.run(work, 1, again)

    assert again.step == lost_after // 2 * 2
    assert same_arrays(result, expected)
    assert exact_metrics_of(disturbed) == exact_metrics_of(calm)
    assert ledger_of(disturbed) == ledger_of(calm)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_that_go_on_together_equal_the_undisturbed_ones(ranks, plan, tmp_path, world_size):
    calm, disturbed, alone = (tmp_path / name for name in ("calm", "disturbed", "alone"))
    expected = ranks.run(work, world_size, next_start(plan, calm))
    work(LocalWorld(), next_start(plan, alone))

    ranks.run(work, world_size, next_start(plan, disturbed, lost_after=5))
    again = next_start(plan, disturbed)
    results = ranks.run(work, world_size, again)

    assert again.step == 4
    assert all(same_arrays(*pair) for pair in zip(results, expected, strict=True))
    assert exact_metrics_of(disturbed) == exact_metrics_of(calm)
    assert ledger_of(disturbed) == ledger_of(calm) == ledger_of(alone)


def test_a_run_goes_on_with_another_number_of_ranks(ranks, plan, tmp_path):
    calm, resized = tmp_path / "calm", tmp_path / "resized"
    work(LocalWorld(), next_start(plan, calm))

    ranks.run(work, 3, next_start(plan, resized, lost_after=3))
    ranks.run(work, 2, next_start(plan, resized, lost_after=3))
    ranks.run(work, 1, next_start(plan, resized))

    assert ledger_of(resized) == ledger_of(calm)
    losses = [[line["train/loss"] for line in metrics_of(run)] for run in (calm, resized)]
    # Sums of fp32 gradients in another order, enlarged by AdamW's first steps.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_every_step_says_what_is_promised(plan, tmp_path):
    work(LocalWorld(), next_start(plan, tmp_path))

    lines = metrics_of(tmp_path)

    always = {
        "step",
        "tokens",
        "train/loss",
        "train/grad_norm",
        "train/skipped",
        "train/lr_multiplier",
        "train/tokens_per_second",
        "train/mfu",
        "train/peak_flops",
        "train/step_seconds",
        "train/data_wait_seconds",
        "data/position",
        "data/row",
        "time",
        *map(key, CATEGORIES),
    }
    when_saved = {"checkpoint/stall_seconds"}
    when_validated = {"validation/bits_per_byte", "validation/seconds"}
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line in lines:
        due = line["step"] % 2 == 0
        assert line.keys() == always | (when_saved | when_validated if due else set())
        speed = line["train/tokens_per_second"]
        assert speed == pytest.approx(12 * 24 / line["train/step_seconds"])
        assert line["train/mfu"] == pytest.approx(speed * 1e4 / 1e12)


def test_the_ledger_says_where_each_step_begins_and_ends(plan, tmp_path):
    work(LocalWorld(), next_start(plan, tmp_path))

    lines = [json.loads(line) for line in ledger_of(tmp_path).splitlines()]

    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[0]["first"] == [0, 0]
    assert [line["first"] for line in lines[1:]] == [line["next"] for line in lines[:-1]]
    assert {line["targets"] for line in lines} == {12 * 24}
    assert len({line["rows"] for line in lines}) == 8


def test_steps_are_saved_and_validated_when_due_and_at_the_end(plan, tmp_path):
    start = next_start(plan, tmp_path)
    config = replace(
        start.config,
        schedule=Schedule(num_steps=7),
        save=SaveConfig(every_steps=3),
        validate_every=5,
    )

    work(LocalWorld(), replace(start, config=config))

    lines = metrics_of(tmp_path)
    saved = [line["step"] for line in lines if "checkpoint/stall_seconds" in line]
    validated = [line["step"] for line in lines if "validation/bits_per_byte" in line]
    assert committed_steps(start.folder) == saved == [3, 6, 7]
    assert validated == [5, 7]


def test_a_validation_that_fails_does_not_cost_the_checkpoint(plan, tmp_path):
    start = next_start(plan, tmp_path, lengths=np.ones(3, np.int32))  # too few for the vocabulary

    with pytest.raises(IndexError):
        work(LocalWorld(), start)

    assert newest_verified_step(start.folder) == 2


def test_a_validation_that_is_missing_at_the_restored_step_is_made_up_for(plan, tmp_path):
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    work(LocalWorld(), next_start(plan, calm))
    with pytest.raises(IndexError):
        work(LocalWorld(), next_start(plan, disturbed, lengths=np.ones(3, np.int32)))
    assert "validation/bits_per_byte" not in metrics_of(disturbed)[-1]

    work(LocalWorld(), next_start(plan, disturbed))

    assert exact_metrics_of(disturbed) == exact_metrics_of(calm)


def test_ranks_make_up_for_a_missing_validation_together(ranks, plan, tmp_path):
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    ranks.run(work, 2, next_start(plan, calm))
    with pytest.raises(IndexError):
        ranks.run(work, 2, next_start(plan, disturbed, lengths=np.ones(3, np.int32)))

    again = next_start(plan, disturbed)
    ranks.run(work, 2, again)

    assert again.step == 2
    assert exact_metrics_of(disturbed) == exact_metrics_of(calm)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_validation_that_is_there_is_not_made_again(ranks, plan, tmp_path, world_size):
    ranks.run(work, world_size, next_start(plan, tmp_path, lost_after=3))
    fails_to_validate = next_start(plan, tmp_path, lengths=np.ones(3, np.int32))

    with pytest.raises(IndexError):
        ranks.run(work, world_size, fails_to_validate)

    # It was made at step 2, where this start began, and was due next at step 4.
    assert fails_to_validate.step == 2
    assert metrics_of(tmp_path)[-1]["step"] == 4


def test_a_finished_run_has_nothing_left_to_do(plan, tmp_path):
    expected = work(LocalWorld(), next_start(plan, tmp_path))
    before = metrics_of(tmp_path), ledger_of(tmp_path)

    result = work(LocalWorld(), next_start(plan, tmp_path))

    assert same_arrays(result, expected)
    assert (metrics_of(tmp_path), ledger_of(tmp_path)) == before


def test_rows_in_the_wrong_order_are_never_saved(plan, tmp_path):
    start = next_start(plan, tmp_path)
    config = replace(start.config, save=SaveConfig(every_steps=1))
    work(LocalWorld(), replace(start, config=config, lost_after=2))
    again = next_start(plan, tmp_path, config=config)

    state, world = tiny_state(), LocalWorld()
    checkpointer = Checkpointer(again.folder, world, attempt=again.attempt, facts={})
    checkpointer.restore(state, again.step)
    metrics = MetricsLogger(again.folder, last_step=again.step)
    validation = BitsPerByte(plan.validation_rows(6), again.lengths, world, 4)
    steps = tiny_steps(plan, Cursor(), world)  # not where the checkpoint stands
    with pytest.raises(DataOrderError):
        train(state, steps, validation, config, world, checkpointer, metrics, Account(0.0))
    checkpointer.wait()
    metrics.close()
    steps.close()

    assert committed_steps(again.folder) == [1, 2]
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2]


class LeavingWorld(LocalWorld):
    """A machine that will be taken away soon after a step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.asked = False
        self.step = step
        self.reports: list[tuple[int, dict[str, Any]]] = []

    def wish(self) -> Wish:
        if self.asked or len(self.reports) != self.step:
            return Wish.NONE
        self.asked = True
        return Wish.SAVE

    def report(self, step: int, values: dict[str, Any]) -> None:
        self.reports.append((step, values))


def test_a_machine_that_is_taken_away_saves_first_and_goes_on(plan, tmp_path):
    start = next_start(plan, tmp_path)
    config = replace(start.config, save=SaveConfig(every_steps=100))

    work(LeavingWorld(step=2), replace(start, config=config))

    assert committed_steps(start.folder) == [3, 8]


def test_who_watches_hears_of_every_step_what_stands_in_the_metrics(plan, tmp_path):
    world = LeavingWorld(step=100)

    work(world, next_start(plan, tmp_path))

    assert world.reports == [(line["step"], line) for line in metrics_of(tmp_path)]


class AskingWorld(LocalWorld):
    """A single process that is asked for something after so many questions."""

    def __init__(self, asked: Wish, after: int) -> None:
        super().__init__()
        self.asked, self.after = asked, after

    def wish(self) -> Wish:
        self.after -= 1
        return self.asked if self.after < 0 else Wish.NONE


@pytest.mark.parametrize(
    ("wish", "error"), [(Wish.GROW, RoomForMoreError), (Wish.STOP, AskedToStopError)]
)
def test_a_group_that_shall_end_saves_at_once_and_loses_no_step(plan, tmp_path, wish, error):
    calm, grown = tmp_path / "calm", tmp_path / "grown"
    rarely = SaveConfig(every_steps=100)
    config = replace(next_start(plan, calm).config, save=rarely)
    expected = work(LocalWorld(), next_start(plan, calm, config=config))

    with pytest.raises(error, match="step 4 is saved"):
        work(AskingWorld(wish, after=3), next_start(plan, grown, config=config))
    again = next_start(plan, grown, config=config)
    result = work(LocalWorld(), again)

    assert again.step == 4
    assert same_arrays(result, expected)
    assert ledger_of(grown) == ledger_of(calm)


def test_a_promised_step_that_cannot_be_saved_is_told_and_the_next_one_is_saved(
    plan: DataPlan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start = next_start(plan, tmp_path)
    save = SaveConfig(every_seconds=3600, at_steps=(4,))
    start = replace(start, config=replace(start.config, save=save))
    votes = chain([False, False, False, True], repeat(False))
    monkeypatch.setattr(Checkpointer, "cannot_save", lambda self: next(votes))

    work(LocalWorld(), start)

    assert committed_steps(start.folder) == [5, 8]
    assert "step 4 is not saved, though an evaluation or --save-at asks for it" in caplog.text
