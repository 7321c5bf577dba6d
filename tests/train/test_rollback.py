"""Rollbacks of tiny runs whose data are poisoned: on one rank, on several, and after kills."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoray.data.blocks import DataOrderError
from nanoray.data.plan import Cursor, DataPlan
from nanoray.storage import list_folder
from nanoray.train.checkpoint_files import committed_steps
from nanoray.train.guard import POISON_VARIABLE
from nanoray.train.rollback import (
    DivergedError,
    Rollback,
    RollbackLimitError,
    leave_out,
    read_rollbacks,
    record_rollback,
    start_cursor,
)
from nanoray.train.save_interval import SaveConfig
from nanoray.train.step import train_step
from nanoray.train.world import LocalWorld, World
from tests.train.saved_states import open_checkpoints, state_at
from tests.train.tiny_run import contents, same_contents, tiny_plan, tiny_state, tiny_steps
from tests.train.tiny_start import Start, next_start, same_arrays, stage_folder, work


@pytest.fixture
def plan(tmp_path: Path) -> DataPlan:
    return tiny_plan(tmp_path / "texts")


def ledger_of(storage: Path) -> list[dict[str, Any]]:
    text = Path(stage_folder(str(storage)).path("ledger.jsonl")).read_text()
    return [json.loads(line) for line in text.splitlines()]


def metrics_of(storage: Path) -> list[dict[str, Any]]:
    text = Path(stage_folder(str(storage)).path("metrics.jsonl")).read_text()
    return [json.loads(line, parse_constant=fail_on_nan) for line in text.splitlines()]


def fail_on_nan(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def units_of_steps(plan: DataPlan, tmp_path: Path) -> list[int]:
    """Give the unit in which each step of an undisturbed run begins."""
    work(LocalWorld(), next_start(plan, tmp_path / "calm"))
    return [line["first"][0] for line in ledger_of(tmp_path / "calm")]


def poisoned(world: World, start: Start, poison: str) -> dict[str, Any]:
    """Train as `work` does, in a process whose data are poisoned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(POISON_VARIABLE, poison)
        return work(world, start)


def train_to_the_end(plan: DataPlan, storage: Path, poison: str) -> tuple[dict[str, Any], int]:
    """Start again after each rollback, as a cluster does; gives the result and the rollbacks."""
    for rollbacks in range(5):
        try:
            return poisoned(LocalWorld(), next_start(plan, storage), poison), rollbacks
        except DivergedError:
            continue
    raise AssertionError("it is rolled back again and again")


def test_a_skipped_step_changes_neither_weights_nor_averages_and_uses_up_its_data(plan):
    state, config = tiny_state(), Start(plan, "", 0, 0).config
    rows = tiny_steps(plan, Cursor(), LocalWorld())
    train_step(state, next(rows), config, LocalWorld())
    before, tokens = contents(state), state.tokens
    next(state.model.parameters()).grad.fill_(float("nan"))  # type: ignore[union-attr]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(POISON_VARIABLE, "0-99:nan")
        result = train_step(state, next(rows), config, LocalWorld())
    rows.close()

    assert result.problem == "the gradient norm is nan"
    assert all((contents(state)[name] == before[name]).all() for name in before)
    assert (state.step, state.updates, state.tokens) == (2, 1, tokens)
    assert state.cursor > result.first


def test_a_run_with_a_skipped_step_equals_one_that_never_had_its_data(plan):
    """Only the schedule knows of the skipped step, and here it is flat."""
    config = Start(plan, "", 0, 0).config
    skipping, without = tiny_state(), tiny_state()
    rows = tiny_steps(plan, Cursor(), LocalWorld())
    steps = [next(rows) for _ in range(4)]
    rows.close()
    config = replace(config, schedule=replace(config.schedule, num_steps=100, momentum_end=0.85))

    for number, step in enumerate(steps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(POISON_VARIABLE, "0-99:inf" if number == 1 else "")
            result = train_step(skipping, step, config, LocalWorld())
        if number == 1:
            without.cursor = skipping.cursor
            assert result.problem is not None
        else:
            train_step(without, step, config, LocalWorld())

    assert same_contents(skipping, without)


def test_one_poisoned_unit_is_skipped_counted_and_marked_and_the_run_goes_on(
    plan, tmp_path, caplog
):
    units = units_of_steps(plan, tmp_path)
    bad = units[4]

    _, rollbacks = train_to_the_end(plan, tmp_path / "bad", f"{bad}-{bad}:nan")

    lines, ledger = metrics_of(tmp_path / "bad"), ledger_of(tmp_path / "bad")
    hit = [number + 1 for number, unit in enumerate(units) if unit == bad]
    assert 0 < len(hit) < 3
    assert rollbacks == 0
    assert [line["step"] for line in ledger if line.get("skipped")] == hit
    assert [line["step"] for line in lines if line["train/grad_norm"] is None] == hit
    assert lines[-1]["train/skipped"] == len(hit)
    assert [line["rows"] for line in ledger] == [
        line["rows"] for line in ledger_of(tmp_path / "calm")
    ]
    assert f"skipped step {hit[0]}: the gradient norm is nan (1 in a row, 1 in the run)" in (
        caplog.text
    )


@pytest.mark.parametrize("lost_after", [4, 5, 6])
def test_a_run_with_skipped_steps_that_is_killed_equals_the_one_that_is_not(
    ranks, plan, tmp_path, lost_after
):
    bad = units_of_steps(plan, tmp_path)[4]
    expected, _ = train_to_the_end(plan, tmp_path / "bad", f"{bad}-{bad}:nan")

    poison = f"{bad}-{bad}:nan"
    poisoned(LocalWorld(), next_start(plan, tmp_path / "hit", lost_after=lost_after), poison)
    [result] = ranks.run(poisoned, 1, next_start(plan, tmp_path / "hit"), poison)

    assert same_arrays(result, expected)
    assert ledger_of(tmp_path / "hit") == ledger_of(tmp_path / "bad")


def test_no_checkpoint_is_made_of_a_skipped_step_but_the_last(plan, tmp_path):
    units = units_of_steps(plan, tmp_path)
    start = next_start(plan, tmp_path / "bad")
    config = replace(start.config, save=SaveConfig(every_steps=1), max_skipped_steps=100)

    poisoned(LocalWorld(), replace(start, config=config), f"{units[3]}-999:inf")

    good = [number + 1 for number, unit in enumerate(units) if unit < units[3]]
    assert committed_steps(start.folder) == [*good, 8][-3:]


def test_many_skipped_steps_send_the_run_back_and_past_their_data(plan, tmp_path):
    units = units_of_steps(plan, tmp_path)
    storage = tmp_path / "bad"
    poison = f"{units[3]}-{units[-1]}:inf"

    _, rollbacks = train_to_the_end(plan, storage, poison)

    ledger, decided = ledger_of(storage), read_rollbacks(stage_folder(str(storage)))
    assert rollbacks == len(decided) > 0
    assert [line["step"] for line in ledger] == list(range(1, 9))
    gaps = [line for line in ledger if "left_out_from" in line]
    last = decided[-1]
    assert [line["step"] for line in gaps] == [last.step + 1]
    assert gaps[0]["left_out_from"] == [last.first.position, last.first.row]
    assert gaps[0]["first"] == [last.next.position, last.next.row]
    for before, after in itertools.pairwise(ledger):
        assert after.get("left_out_from", after["first"]) == before["next"]
    assert all(line["train/loss"] is not None for line in metrics_of(storage)[-3:])


def test_a_run_killed_after_a_rollback_goes_past_the_same_data(plan, tmp_path):
    units = units_of_steps(plan, tmp_path)
    poison = f"{units[3]}-{units[5]}:inf"
    expected, _ = train_to_the_end(plan, tmp_path / "bad", poison)

    hit = tmp_path / "hit"
    with pytest.raises(DivergedError):
        poisoned(LocalWorld(), next_start(plan, hit), poison)
    poisoned(LocalWorld(), next_start(plan, hit, lost_after=1), poison)
    result, _ = train_to_the_end(plan, hit, poison)

    assert same_arrays(result, expected)
    assert ledger_of(hit) == ledger_of(tmp_path / "bad")


def test_ranks_roll_back_together(ranks, plan, tmp_path):
    units = units_of_steps(plan, tmp_path)
    poison = f"{units[3]}-{units[5]}:inf"
    _, alone = train_to_the_end(plan, tmp_path / "alone", poison)

    for _ in range(alone):
        with pytest.raises(DivergedError):
            ranks.run(poisoned, 2, next_start(plan, tmp_path / "two"), poison)
    ranks.run(poisoned, 2, next_start(plan, tmp_path / "two"), poison)

    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "alone")


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_that_no_rollback_mends_stops_and_says_why(ranks, plan, tmp_path, world_size):
    for _ in range(2):
        with pytest.raises(DivergedError):
            ranks.run(poisoned, world_size, next_start(plan, tmp_path), "0-9999:nan")

    with pytest.raises(RollbackLimitError, match="after 2 rollbacks") as stopped:
        ranks.run(poisoned, world_size, next_start(plan, tmp_path), "0-9999:nan")

    assert "the gradient norm is nan" in str(stopped.value)
    assert len(read_rollbacks(stage_folder(str(tmp_path)))) == 2


def test_a_rollback_that_led_nowhere_is_followed_by_one_to_the_checkpoint_before(folder):
    checkpoints = open_checkpoints(folder)
    for step in (2, 4):
        checkpoints.save(state_at(step))
        checkpoints.wait()
    ends = Cursor(100, 1), Cursor(200, 2)

    first, second = (record_rollback(folder, end, max_rollbacks=9) for end in ends)

    assert first == Rollback(4, state_at(4).cursor, ends[0])
    assert second == Rollback(2, state_at(2).cursor, ends[1])
    assert read_rollbacks(folder) == [first, second]
    assert committed_steps(folder) == [2]
    assert start_cursor(folder, 2) == ends[1]
    [moved] = list_folder(folder.fs, folder.path("checkpoints", "rolled_back"))
    assert moved.startswith("step_000004-")


def test_without_an_older_checkpoint_a_rollback_leaves_out_more_data(folder):
    ends = Cursor(100, 1), Cursor(200, 2)

    for end in ends:
        record_rollback(folder, end, max_rollbacks=9)

    assert start_cursor(folder, 0) == ends[1]


def test_the_same_rollback_decided_again_is_not_counted(folder):
    for _ in range(3):
        assert record_rollback(folder, Cursor(7, 0), max_rollbacks=1) is not None

    assert record_rollback(folder, Cursor(8, 0), max_rollbacks=1) is None
    assert len(read_rollbacks(folder)) == 1


def test_only_the_recorded_gap_is_accepted(plan, disk):
    record_rollback(disk, Cursor(2, 0), max_rollbacks=1)
    config = Start(plan, "", 0, 0).config

    for begin, accepted in ((Cursor(), False), (Cursor(1), False), (Cursor(2), True)):
        state = tiny_state()
        leave_out(state, disk)
        rows = tiny_steps(plan, begin, LocalWorld())
        if accepted:
            result = train_step(state, next(rows), config, LocalWorld())
            assert (result.left_out_from, result.first) == (Cursor(), Cursor(2))
            assert state.left_out_from is None
        else:
            with pytest.raises(DataOrderError, match="row 0 of unit 2 was due"):
                train_step(state, next(rows), config, LocalWorld())
        rows.close()


def test_another_checkpoint_of_the_same_step_keeps_its_place(disk):
    checkpoints = open_checkpoints(disk)
    checkpoints.save(state_at(4))
    checkpoints.wait()
    record_rollback(disk, Cursor(100, 0), max_rollbacks=1)
    elsewhere = state_at(4)
    elsewhere.cursor = Cursor(50, 0)

    leave_out(elsewhere, disk)

    assert (elsewhere.cursor, elsewhere.left_out_from) == (Cursor(50, 0), None)


def test_a_group_that_was_replaced_cannot_roll_back(plan, tmp_path):
    old = next_start(plan, tmp_path)
    next_start(plan, tmp_path)
    config = replace(old.config, save=SaveConfig(every_steps=100))

    with pytest.raises(RuntimeError, match="attempt 2 has replaced attempt 1"):
        poisoned(LocalWorld(), replace(old, config=config), "0-9999:nan")

    assert read_rollbacks(old.folder) == []
