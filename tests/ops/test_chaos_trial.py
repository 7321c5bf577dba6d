import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nanoray.goodput import CATEGORIES, key
from nanoray.ops import chaos_trial
from nanoray.ops.chaos_faults import Harm, Target
from nanoray.ops.chaos_trial import (
    Plan,
    Trial,
    Watch,
    compare,
    harm,
    is_due,
    run_trial,
    told,
)
from nanoray.storage import StageFolder
from tests.ops.test_chaos_faults import target_of

PLAN = Plan("worker-0", 0, ((5, "worker"),))


def write_lines(folder: StageFolder, name: str, lines: list[dict[str, object]]) -> None:
    path = Path(folder.path(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_run(
    storage: Path, losses: list[float | None], rows: str = "abc", sha256: str = "0"
) -> StageFolder:
    """Write what a finished run leaves behind: a second per step, half of it productive."""
    folder = target_of(storage).folder
    spent = dict.fromkeys(map(key, CATEGORIES), 0.0)
    write_lines(folder, "events.jsonl", [{"time": 100.0, "event": "start"}])
    steps = range(1, len(losses) + 1)
    records: list[dict[str, object]] = []
    for step, loss in zip(steps, losses, strict=True):
        half = {key("productive"): step / 2, key("waiting"): step / 2}
        records.append({"step": step, "time": 100.0 + step, "train/loss": loss, **spent, **half})
    write_lines(folder, "metrics.jsonl", records)
    write_lines(folder, "ledger.jsonl", [{"step": step, "rows": rows} for step in steps])
    files = {"model.safetensors": {"sha256": sha256, "bytes": 1}}
    newest = f"checkpoints/step_{len(losses):06d}/manifest.json"
    write_lines(folder, newest, [{"format_version": 1, "files": files}])
    return folder


def compared(folder: StageFolder, calm: StageFolder) -> Trial:
    trial = Trial(PLAN)
    compare(trial, folder, calm)
    return trial


def test_equal_runs_are_equal_and_their_time_is_accounted_for(tmp_path):
    calm = write_run(tmp_path / "calm", [3.0, None, 1.0])

    trial = compared(write_run(tmp_path / "harmed", [3.0, None, 1.0]), calm)

    assert trial.is_equal
    assert trial.goodput == pytest.approx(0.5)
    assert sum(trial.seconds.values()) == pytest.approx(3.0)
    assert json.loads(json.dumps(trial.to_json()))["is_equal"] is True


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"losses": [3.0, 2.5]}, (False, True, True)),
        ({"rows": "abd"}, (True, False, True)),
        ({"sha256": "1"}, (True, True, False)),
    ],
)
def test_each_difference_is_told_by_itself(tmp_path, changes, same):
    calm = write_run(tmp_path / "calm", [3.0, 2.0])

    trial = compared(write_run(tmp_path / "harmed", **{"losses": [3.0, 2.0], **changes}), calm)

    assert (trial.same_losses, trial.same_ledger, trial.same_weights) == same
    assert not trial.is_equal
    assert trial.largest_difference == (0.5 if "losses" in changes else 0.0)


def test_losses_that_are_equally_infinite_do_not_differ(tmp_path):
    calm = write_run(tmp_path / "calm", [None, 1.0])

    trial = compared(write_run(tmp_path / "harmed", [None, 1.5]), calm)

    assert trial.largest_difference == 0.5


@pytest.mark.parametrize(
    ("difference", "must_be_exact", "problem"),
    [
        (1e-4, True, "its losses differ by up to 0.0001, its weights differ"),
        (1e-4, False, ""),
        (3.0, False, "its losses differ by up to 3"),
        (float("nan"), False, "its losses differ by up to nan"),
    ],
)
def test_only_where_bits_are_not_decided_may_losses_differ_a_little(
    difference, must_be_exact, problem
):
    trial = Trial(PLAN, same_ledger=True, largest_difference=difference)

    assert replace(trial, must_be_exact=must_be_exact).problem == problem
    assert replace(trial, same_ledger=False).problem.startswith("it learned from other data")


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Raise what Ctrl-C raises, in so many seconds."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def with_checkpoint(storage: Path, outage_seconds: float) -> tuple[Target, Path]:
    """Give a run with a checkpoint, and that checkpoint."""
    target = replace(target_of(storage), outage_seconds=outage_seconds)
    step = Path(target.folder.path("checkpoints/step_000020"))
    step.mkdir(parents=True)
    return target, step


def test_what_was_done_is_made_good_after_ctrl_c(tmp_path):
    target, step = with_checkpoint(tmp_path, outage_seconds=60.0)

    with interrupted_after(0.5), pytest.raises(KeyboardInterrupt):
        harm(target, "storage")

    assert step.is_dir()


def test_a_job_that_is_watched_ends_with_its_watcher(tmp_path):
    target = target_of(tmp_path)

    with interrupted_after(0.5), pytest.raises(KeyboardInterrupt):
        run_trial(replace(PLAN, faults=()), target, target.folder)

    assert target.job.code == -signal.SIGKILL


def test_an_outage_may_last_longer_than_the_patience_with_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_trial, "PATIENCE_SECONDS", 0.2)
    target, step = with_checkpoint(tmp_path, outage_seconds=0.6)
    began = time.monotonic()

    with pytest.raises(TimeoutError):  # nobody trains here
        harm(target, "storage")

    assert time.monotonic() - began > 0.7
    assert step.is_dir()


def test_a_run_that_makes_steps_may_take_long_until_it_saves_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(chaos_trial, "PATIENCE_SECONDS", 0.5)
    target, step = with_checkpoint(tmp_path, outage_seconds=0.1)

    def train() -> None:
        for made in range(21, 36):
            time.sleep(0.1)
            write_lines(target.folder, "metrics.jsonl", [{"step": made}])
        step.with_name("step_000035").mkdir()

    trainer = threading.Thread(target=train)
    trainer.start()
    injury = harm(target, "storage")
    trainer.join()

    assert injury.saved_after is not None
    assert injury.saved_after > 1.0


def test_damage_waits_for_a_checkpoint(tmp_path):
    assert not is_due(target_of(tmp_path), 0, "damage")


def test_a_restart_is_measured_from_events_steps_and_checkpoints(tmp_path):
    target = target_of(tmp_path)
    folder = target.folder
    steps: list[dict[str, object]] = [{"step": s, "time": 90.0 + s / 10} for s in range(1, 45)]
    write_lines(folder, "metrics.jsonl", steps)
    Path(folder.path("checkpoints/step_000040")).mkdir(parents=True)
    watch = Watch(target, Harm("killed rank 1", at=94.3), before=43, saved=40)

    assert not watch.has_recovered()
    write_lines(
        folder,
        "events.jsonl",
        [
            {"time": 10.0, "event": "begin", "step": 0},
            {"time": 96.3, "event": "failure"},
            {"time": 97.0, "event": "begin", "step": 40},
        ],
    )
    assert not watch.has_recovered()
    write_lines(folder, "metrics.jsonl", [*steps[:40], {"step": 41, "time": 101.8}])
    watch.has_recovered()
    Path(folder.path("checkpoints/step_000060")).mkdir()
    assert watch.has_recovered()

    injury = watch.injury("worker")
    assert (injury.detected_after, injury.training_after, injury.lost_steps) == (2.0, 7.5, 4)
    assert told(injury) == (
        "step 43, killed rank 1: detected after 2.0 s, training again after 7.5 s, 4 steps lost"
    )
