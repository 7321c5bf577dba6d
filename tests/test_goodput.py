import json
import os
import signal
import time
from pathlib import Path

import pytest

from nanoray.events import append_event
from nanoray.goodput import CATEGORIES, Account, key, open_account, paid_seconds, read_account
from nanoray.metrics import MetricsLogger, read_metrics
from nanoray.storage import RunFolder, StageFolder
from nanoray.train.world import LocalWorld
from tests.train.ranks import process_context
from tests.train.tiny_run import tiny_plan
from tests.train.tiny_start import Start, next_start, stage_folder, work


class Clock:
    """Time that passes when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return RunFolder(str(tmp_path), "r").stage("pretrain")


def events(folder: StageFolder, *told: tuple[float, str]) -> None:
    for at, kind in told:
        append_event(folder, kind.split()[0], time=at, why=kind.split()[-1])


def group(
    folder: StageFolder, clock: Clock, begins: float, start_step: int, step_ends: list[float]
) -> Account:
    """Let a group go through its steps, each of which waits a second for data."""
    clock.now = begins
    account = open_account(folder, start_step, clock)
    metrics = MetricsLogger(folder, last_step=start_step)
    for step, clock.now in enumerate(step_ends, start=start_step + 1):
        account.spend_step(1.0, skipped=False)
        metrics.record({"step": step, **account.values()}, {"step": step})
    metrics.close()
    return account


def spent(account: Account) -> dict[str, float]:
    return {name: seconds for name, seconds in account.seconds.items() if seconds}


def test_a_calm_run_starts_waits_for_machines_starts_up_and_trains(folder):
    events(folder, (100, "start"), (110, "submit"), (130, "begin"))

    account = group(folder, Clock(), 140, 0, [150, 155, 160])
    events(folder, (165, "stop done"))

    assert spent(account) == {"start_up": 30, "waiting": 20, "data_wait": 2, "productive": 8}
    assert spent(read_account(folder)) == {**spent(account), "start_up": 35}


def test_steps_lost_in_a_failure_are_recomputed_and_the_time_down_is_waiting(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    group(folder, clock, 0, 0, [10, 20, 30, 40])  # saved after step 2, killed after step 4
    events(folder, (55, "begin"))

    account = group(folder, clock, 60, 2, [70, 80])

    assert spent(account) == {
        "start_up": 10 + 5 + 10,
        "data_wait": 3 + 1,
        "recomputed": 2 * 9,
        "waiting": 15,
        "productive": 9 + 9,
    }
    assert account.total == 80


def test_a_group_that_dies_before_its_first_step_loses_nothing_twice(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    group(folder, clock, 0, 0, [10, 20, 30])
    for begin in (40, 60, 80):
        events(folder, (begin, "begin"))
        group(folder, clock, begin + 10, 1, [])

    account = group(folder, clock, 95, 1, [100, 110])

    assert account.total == 110
    assert account.seconds["recomputed"] == 18
    assert account.seconds["productive"] == 9


def test_time_between_two_starts_is_stopped_whether_a_person_ended_the_job_or_a_kill(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    group(folder, clock, 0, 0, [10, 20])
    events(folder, (25, "stop interrupted"), (1000, "start"), (1001, "submit"), (1003, "begin"))
    group(folder, clock, 1005, 2, [1010, 1020])
    events(folder, (2000, "start"), (2001, "submit"), (2003, "begin"))  # killed after 1020

    account = group(folder, clock, 2005, 4, [2010])

    assert account.total == 2010
    assert spent(account) == {
        "start_up": 10 + 1 + 7 + 1 + 7,
        "data_wait": 2,
        "productive": 18,
        "waiting": 5 + 2 + 2,
        "stopped": 975 + 980,
    }


def test_a_stage_without_events_begins_its_account_where_it_is_opened(folder):
    clock = Clock()

    account = group(folder, clock, 500, 0, [510, 520])

    assert account.total == 20


def test_steps_after_those_of_a_trunk_are_recomputed_after_a_failure(folder):
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    folder.fs.makedirs(folder.path(), exist_ok=True)
    Path(folder.path("metrics.jsonl")).write_text('{"step": 5}\n')  # the trunk's
    group(folder, Clock(), 0, 5, [10, 20, 30])
    events(folder, (30, "failure"), (30, "begin"))
    clock = Clock()
    clock.now = 40

    account = open_account(folder, 5, clock)

    assert account.seconds["productive"] == 0
    assert account.seconds["recomputed"] == 18


def test_stall_validation_and_skipped_steps_have_their_own_sums():
    clock = Clock()
    account = Account(0.0, clock=clock)
    account.is_first_step = False

    for clock.now, spend in (
        (10, lambda: account.spend_step(2.0, skipped=False)),
        (13, lambda: account.spend("checkpoint_stall")),
        (20, lambda: account.spend("validation")),
        (26, lambda: account.spend_step(1.0, skipped=True)),
    ):
        spend()

    expected = {"productive": 8, "data_wait": 3, "checkpoint_stall": 3, "validation": 7}
    assert spent(account) == {**expected, "skipped": 5}


def test_a_clock_that_is_set_back_books_nothing_and_breaks_nothing():
    clock = Clock()
    account = Account(0.0, clock=clock)
    for clock.now in (10, 4, 12):
        account.spend("validation")

    assert spent(account) == {"validation": 12}


def test_a_wait_longer_than_the_step_cannot_make_time(folder):
    clock = Clock()
    account = Account(0.0, clock=clock)
    account.is_first_step = False
    clock.now = 5

    account.spend_step(9.0, skipped=False)

    assert spent(account) == {"data_wait": 5}


def start_and_train(start: Start) -> None:
    work(LocalWorld(), start)


def test_after_real_kills_the_parts_sum_to_the_wall_time(tmp_path):
    plan, storage = tiny_plan(tmp_path / "texts"), tmp_path / "runs"
    folder = stage_folder(str(storage))
    began = time.time()
    for kill_after in (3, 6, None):
        append_event(folder, "start")
        append_event(folder, "submit")
        process = process_context().Process(
            target=start_and_train, args=(next_start(plan, storage),)
        )
        process.start()
        if kill_after is not None:
            wait_for_step(folder, kill_after, time.time() + 60)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    append_event(folder, "stop", why="done")
    wall = time.time() - began

    account = read_account(folder)

    lines = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert account.total == pytest.approx(wall, rel=0.01)
    assert all(seconds >= 0 for seconds in account.seconds.values())
    assert sum(lines[-1][key(name)] for name in CATEGORIES) <= account.total + 0.01


def wait_for_step(folder: StageFolder, step: int, deadline: float) -> None:
    while time.time() < deadline:
        lines = read_metrics(folder.fs, folder.path("metrics.jsonl"))
        if any(line["step"] >= step for line in lines):
            return
        time.sleep(0.002)
    raise AssertionError(f"step {step} never came")


def test_a_run_pays_for_no_time_in_which_it_holds_no_workers():
    seconds = dict.fromkeys(CATEGORIES, 1.0)

    assert paid_seconds(seconds) == len(CATEGORIES) - 2
    assert paid_seconds({**seconds, "waiting": 1e6, "stopped": 1e6}) == len(CATEGORIES) - 2


def test_a_clock_that_is_set_while_a_group_trains_changes_nothing(folder, monkeypatch):
    real, jumps = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + jumps[-1])
    account = open_account(folder, 0)
    account.spend_step(0.0, skipped=False)

    for jump in (3600.0, -3600.0):
        jumps.append(jump)
        time.sleep(0.05)
        assert 0.05 <= account.spend("productive") < 60


def test_a_start_while_another_one_trains_is_no_clock_that_was_set_back(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    group(folder, clock, 0, 0, [10, 100, 200])
    events(folder, (50, "start"), (60, "submit"), (205, "begin"))

    account = group(folder, clock, 210, 3, [220])

    assert account.total == 220


def test_a_clock_that_is_set_back_between_two_groups_costs_at_most_the_time_between_them(folder):
    clock = Clock()
    events(folder, (5000, "start"), (5000, "submit"), (5000, "begin"))
    group(folder, clock, 5000, 0, [5010, 5020, 5030])
    events(folder, (2000, "failure"), (2007, "begin"))  # the clock was set back by some 3000 s

    account = group(folder, clock, 2010, 3, [2020, 2030])

    assert spent(account) == {
        "start_up": 10 + 10,
        "data_wait": 2 + 1,
        "productive": 18 + 9,
        "waiting": 7,
    }
    events(folder, (2034, "failure"), (2040, "begin"))
    again = group(folder, clock, 2045, 5, [2055])
    assert again.total == account.total + 25
    assert again.seconds["waiting"] == 7 + 4 + 6


def begin(folder: StageFolder, at: float, dollars_per_hour: float) -> None:
    append_event(folder, "begin", time=at, dollars_per_hour=dollars_per_hour)


def test_each_group_costs_what_it_held_for_as_long_as_it_held_it(folder):
    clock = Clock()
    events(folder, (0, "start"), (600, "submit"))  # prepares for ten minutes, with no workers
    begin(folder, 900, 32 * 3.0)
    group(folder, clock, 1000, 0, [2700, 4500])  # an hour on 32 GPUs
    events(folder, (4500, "stop interrupted"), (9000, "start"), (9100, "submit"))
    begin(folder, 9200, 8 * 3.0)
    group(folder, clock, 9300, 2, [11000, 12800])  # an hour on 8
    events(folder, (12800, "growth"))
    begin(folder, 13000, 16 * 3.0)

    account = group(folder, clock, 13100, 4, [14000, 14800])  # half an hour on 16

    assert account.dollars == pytest.approx(96 + 24 + 24)
    assert read_account(folder).dollars == pytest.approx(144)
    assert account.total == 14800
    last = read_metrics(folder.fs, folder.path("metrics.jsonl"))[-1]
    assert last["cost/dollars"] == pytest.approx(144)


def test_lost_steps_and_starts_that_fail_are_paid_and_the_time_between_is_not(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"))
    begin(folder, 0, 3600.0)  # a dollar per second
    group(folder, clock, 10, 0, [20, 30, 40])  # saved after step 1
    events(folder, (50, "failure"))
    begin(folder, 100, 7200.0)
    events(folder, (110, "failure"))  # before its first step
    begin(folder, 200, 1800.0)

    account = group(folder, clock, 210, 1, [220])

    assert account.dollars == pytest.approx(40 + 20 + 10)
    assert account.seconds["recomputed"] > 0


def test_ending_well_is_paid_and_preparing_the_next_start_is_not(folder):
    events(folder, (0, "start"), (0, "submit"))
    begin(folder, 0, 3600.0)
    group(folder, Clock(), 0, 0, [10])
    events(folder, (15, "stop done"), (100, "start"), (130, "submit"))

    account = read_account(folder)

    assert account.dollars == pytest.approx(15)
    assert account.seconds["start_up"] == 10 + 5 + 30


def old_run(folder: StageFolder, clock: Clock) -> None:
    """Write what a run left that told its price when it asked for workers, and no sums of money."""
    append_event(folder, "start", time=0)
    append_event(folder, "submit", time=0, dollars_per_hour=3600.0)
    append_event(folder, "begin", time=0)
    group(folder, clock, 0, 0, [50, 100])
    for name in ("metrics.jsonl", "events.jsonl"):
        path = Path(folder.path(name))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            for added in ("cost/dollars", "dollars"):
                line.pop(added, None)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_that_began_before_the_money_was_summed_goes_on_from_its_price(folder):
    clock = Clock()
    old_run(folder, clock)
    assert read_account(folder).dollars == pytest.approx(100)

    events(folder, (100, "stop interrupted"), (500, "start"), (500, "submit"))
    begin(folder, 500, 900.0)
    account = group(folder, clock, 500, 2, [600])

    assert account.dollars == pytest.approx(100 + 25)
    assert read_account(folder).dollars == pytest.approx(125)


def test_without_a_price_there_is_no_cost_until_somebody_asks_for_that_of_all(folder):
    clock = Clock()
    events(folder, (0, "start"), (0, "submit"), (0, "begin"))
    account = group(folder, clock, 0, 0, [50, 100])
    assert account.dollars is None
    assert read_account(folder).unpriced_seconds == 100

    events(folder, (100, "stop interrupted"), (500, "start"), (500, "submit"))
    begin(folder, 500, 3600.0)
    account = group(folder, clock, 500, 2, [600])

    assert account.dollars == pytest.approx(100 + 100)
