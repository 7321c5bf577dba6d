import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from nanoray.config import InputError, StorageError
from nanoray.events import append_event, read_events
from nanoray.goodput import CATEGORIES
from nanoray.ops.report import ReportConfig, as_json, report, watch
from nanoray.report import ReportFacts, write_report
from nanoray.storage import StageFolder
from nanoray.train.world import LocalWorld
from tests.train.tiny_run import tiny_plan
from tests.train.tiny_start import next_start, stage_folder, work

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trained(tmp_path: Path) -> StageFolder:
    """Give a run whose first group was lost after step 5."""
    plan, folder = tiny_plan(tmp_path / "texts"), stage_folder(str(tmp_path))
    folder.write_config({"run": "tiny", "depth": 2})
    append_event(folder, "start")
    append_event(folder, "submit")
    work(LocalWorld(), next_start(plan, tmp_path, lost_after=5))
    work(LocalWorld(), next_start(plan, tmp_path))
    append_event(folder, "stop", why="done")
    return folder


def config_of(folder: StageFolder, **fields: bool) -> ReportConfig:
    return ReportConfig(run="tiny", storage=folder.run.storage, **fields)


def test_a_program_gets_the_newest_values_and_all_of_the_time(trained):
    told = json.loads(report(config_of(trained, json=True)))

    assert (told["step"], told["groups"], told["failures"]) == (8, 2, 1)
    assert told["seconds"].keys() == CATEGORIES.keys()
    assert sum(told["seconds"].values()) == pytest.approx(told["wall_seconds"])
    assert told["seconds"]["recomputed"] > 0
    assert told["goodput"] == pytest.approx(told["seconds"]["productive"] / told["wall_seconds"])


def test_a_person_gets_a_table_and_the_report_shows_every_category_that_has_time(trained):
    text = report(config_of(trained))

    assert all(label in text for label in CATEGORIES.values())
    page = Path(trained.path("report.html")).read_text()
    assert "Where the time went" in page
    assert CATEGORIES["recomputed"] in page
    assert CATEGORIES["stopped"] not in page


def test_the_cost_is_told_where_workers_have_a_price(trained):
    assert json.loads(report(config_of(trained, json=True)))["dollars"] is None
    assert "cost so far" not in report(config_of(trained))
    now = read_events(trained)[-1]["time"]
    append_event(trained, "start", time=now)
    append_event(trained, "begin", time=now + 100, dollars_per_hour=36.0)
    append_event(trained, "failure", time=now + 1100, cause="lost worker", rank=0, again=True)
    append_event(trained, "begin", time=now + 2000, dollars_per_hour=9.0)
    append_event(trained, "stop", time=now + 4000, why="interrupted")

    told = json.loads(report(config_of(trained, json=True)))

    # The seconds before there was a price cost the first one: a cent each.
    assert told["dollars"] == pytest.approx(10 + 5, abs=2)
    (line,) = [line for line in report(config_of(trained)).splitlines() if "cost so far" in line]
    assert f"${told['dollars']:.2f}" in line


def test_a_report_written_anew_keeps_what_only_the_run_knew(trained):
    facts = ReportFacts(
        title="tiny / pretrain",
        summary={"weights": "sha256 0123"},
        derivation={"width": "64 x depth"},
        resume_command="python jobs/pretrain.py --storage s3://key:secret@bucket/runs",
        samples=[("Once", " upon a time")],
    )
    write_report(trained, facts)
    trained.run.mark_done(trained.name)
    Path(trained.path("report.html")).unlink()

    report(config_of(trained))

    page = Path(trained.path("report.html")).read_text()
    assert all(part in page for part in ("sha256 0123", "64 x depth", "upon a time"))
    assert "secret" not in Path(trained.path("report.json")).read_text()


def test_the_report_of_an_unfinished_run_has_the_command_that_goes_on_with_it(trained):
    report(config_of(trained))
    page = Path(trained.path("report.html"))
    assert "Resume or repeat" not in page.read_text(), "nobody typed one"

    command = "python jobs/pretrain.py --run tiny --storage elsewhere --seed 7"
    append_event(trained, "start", command=command)
    append_event(trained, "start", command="")
    report(config_of(trained))

    assert f"<pre>{command}</pre>" in page.read_text()


def test_a_run_is_watched_until_its_job_has_ended(trained, monkeypatch, capsys):
    append_event(trained, "start")
    monkeypatch.setattr("nanoray.ops.report.WATCH_SECONDS", 0.1)

    def end() -> None:
        append_event(trained, "failure", cause="hang", rank=1, again=True)
        append_event(trained, "stop", why="done")

    timer = threading.Timer(1.0, end)
    timer.start()
    text = report(config_of(trained, watch=True))
    timer.join()

    assert "hang: 1" in text
    assert "tiny / pretrain" in capsys.readouterr().out


def test_ctrl_c_ends_the_watching_with_the_summary_as_it_is_then(trained, monkeypatch):
    append_event(trained, "start")
    monkeypatch.setattr("nanoray.ops.report.WATCH_SECONDS", 0.1)

    # In a test before, Ray Train may have taken the signal for itself.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()
        text = report(config_of(trained, watch=True))
        timer.join()
    finally:
        signal.signal(signal.SIGINT, earlier)

    assert "where the time went" in text
    assert f"report: {trained}/report.html" in text


def test_a_run_whose_job_was_killed_shows_how_long_it_has_told_nothing(trained):
    assert "told nothing" not in report(config_of(trained))
    for name in ("metrics.jsonl", "events.jsonl"):
        file = Path(trained.path(name))
        told_before = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [one for one in told_before if one.get("event") != "stop"]
        for one in kept:
            one["time"] -= 47 * 60
        file.write_text("".join(json.dumps(one) + "\n" for one in kept))

    told = json.loads(report(config_of(trained, json=True)))
    (line,) = [line for line in report(config_of(trained)).splitlines() if "told nothing" in line]

    assert "last step 47 min ago; the job has told nothing since" in line
    assert told["silent"] in line
    # The page is read later, when this is true no more.
    assert "told nothing" not in Path(trained.path("report.html")).read_text()


def test_storage_that_is_away_is_one_sentence():
    with pytest.raises(StorageError, match=r"^http://127\.0\.0\.1:1/runs cannot be used \(Client"):
        report(ReportConfig(run="tiny", storage="http://127.0.0.1:1/runs"))


def test_storage_that_is_away_for_a_while_is_told_and_watched_on(trained, monkeypatch):
    append_event(trained, "start")
    monkeypatch.setattr("nanoray.ops.report.WATCH_SECONDS", 0.1)
    metrics = Path(trained.path("metrics.jsonl"))
    aside = metrics.rename(metrics.with_suffix(".aside"))
    metrics.mkdir()  # reading it is an OSError

    def come_back_and_end() -> None:
        metrics.rmdir()
        aside.rename(metrics)
        append_event(trained, "stop", why="done")

    timer = threading.Timer(1.0, come_back_and_end)
    timer.start()
    screen = io.StringIO()
    watch(trained, Console(file=screen, force_terminal=True, width=400))
    timer.join()

    away, back = screen.getvalue().split("where the time went", 1)
    assert f"{trained} cannot be read now (IsADirectoryError" in away
    assert "cannot be read" not in back


def test_tables_and_json_at_once_are_refused(trained):
    with pytest.raises(InputError, match="Give one of them"):
        config_of(trained, watch=True, json=True)


def test_a_run_that_has_made_no_step_has_a_report_too(tmp_path):
    folder = stage_folder(str(tmp_path))
    folder.write_config({"run": "tiny"})

    text = report(config_of(folder))

    assert "unknown" in text
    assert Path(folder.path("report.html")).exists()


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        report(ReportConfig(run="nowhere", storage=str(tmp_path)))


def test_the_job_takes_the_name_of_the_run_alone(trained):
    command = [sys.executable, str(ROOT / "jobs" / "report.py"), "tiny"]

    done = subprocess.run(
        [*command, "--storage", trained.run.storage], capture_output=True, text=True, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert "where the time went" in done.stdout


def test_numbers_that_json_cannot_hold_are_null() -> None:
    told = as_json({"a": float("nan"), "b": [float("inf"), 1], "c": {"d": 2.5}})

    assert told == {"a": None, "b": [None, 1], "c": {"d": 2.5}}
