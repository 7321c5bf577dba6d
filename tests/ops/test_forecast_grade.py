"""A forecast held against its run."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanoray.config import InputError
from nanoray.events import append_event
from nanoray.model.scaling import flops_per_token
from nanoray.ops.forecast import ForecastConfig, forecast
from nanoray.ops.forecast_grade import grade, measure
from nanoray.ops.trial_table import write_trials
from nanoray.stages.pretrain_config import PretrainConfig, decide, model_config
from nanoray.storage import RunFolder, read_json, write_json
from tests.ops.synthetic_sweep import trials

JOB = Path(__file__).parents[2] / "jobs" / "forecast.py"
PEAK = 1e12


def finish_run(storage: Path, run: str, bits: float, *, began: float, **fields: object) -> None:
    """Leave what a finished run of depth 10 at ratio 20 leaves."""
    asked = PretrainConfig(depth=10, tokens_per_param=20, device_batch_size=8, **fields)  # type: ignore[arg-type]  # of many types
    config = decide(asked, on_gpu=False, dtype="float32")
    folder = RunFolder(str(storage), run).stage("pretrain")
    append_event(folder, "start", time=began)
    folder.write_config(vars(config))
    speed, per_token = 4000.0, flops_per_token(model_config(config))
    steps = [
        {
            "step": step,
            "tokens": step * 16_384,
            "time": began + step,
            "train/step_seconds": 1800.0,
            "train/tokens_per_second": speed,
            "train/mfu": speed * per_token / (PEAK * 2),
            "train/peak_flops": PEAK,
        }
        for step in (1, 2)
    ]
    steps[-1]["validation/bits_per_byte"] = bits
    Path(folder.path("metrics.jsonl")).write_text("".join(json.dumps(s) + "\n" for s in steps))
    write_json(folder.fs, folder.path("result.json"), {"peak_memory_bytes": 2**30})
    folder.run.mark_done("pretrain")


@pytest.fixture(scope="module")
def storage_with_forecast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a storage with a forecast of depth 10 at ratio 20."""
    storage = tmp_path_factory.mktemp("storage")
    write_trials(str(storage / "s"), trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40]))
    forecast(ForecastConfig(sweep="s", depth=10, ratio=20, storage=str(storage)))
    return storage


@pytest.fixture
def made(storage_with_forecast: Path, tmp_path: Path) -> tuple[Path, float]:
    """Give a copy of it, and the bits per byte that the forecast names."""
    shutil.copytree(storage_with_forecast, tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "s" / "forecast-d10-r20.json").read_text())
    return tmp_path, facts["predicted"]["bits_per_byte"]["value"]


def test_a_run_that_came_out_as_forecast_is_inside(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "d10", bits + 1e-4, began=time.time() + 60)

    told = grade(str(storage), "d10", None)

    kept = json.loads((storage / "s" / "grade-d10.json").read_text())
    assert kept["made_before_the_run"]
    assert kept["rows"]["bits per byte"]["verdict"] == "inside"
    assert kept["rows"]["hours"]["measured"] == pytest.approx(1.0)
    assert kept["notes"] == []
    assert "inside" in told
    assert "90 % interval" in told
    assert f"{storage}/s/grade-d10.json" in told


def test_a_run_that_came_out_otherwise_is_outside(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "d10", bits * 1.1, began=time.time() + 60)

    told = grade(str(storage), "d10", "s")

    assert "OUTSIDE" in told


def test_a_forecast_from_after_the_run_began_is_said_to_be_none(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "d10", bits, began=time.time() - 7200)

    told = grade(str(storage), "d10", None)

    kept = json.loads((storage / "s" / "grade-d10.json").read_text())
    assert not kept["made_before_the_run"]
    assert "THIS IS NO FORECAST: it was made 2.0 h after the run began." in told.splitlines()


def test_a_later_forecast_does_not_take_the_place_of_the_one_before_the_run(
    made: tuple[Path, float],
) -> None:
    storage, bits = made
    began = time.time() + 0.01
    time.sleep(1.1)
    finish_run(storage, "d10", bits, began=began)
    forecast(ForecastConfig(sweep="s", depth=10, ratio=20, storage=str(storage)))

    grade(str(storage), "d10", None)

    kept = json.loads((storage / "s" / "grade-d10.json").read_text())
    assert kept["made_before_the_run"]
    assert kept["forecast"].startswith("forecast-d10-r20.made-")


def test_other_workers_shapes_and_data_are_told_of(made: tuple[Path, float]) -> None:
    storage, bits = made
    path = storage / "s" / "forecast-d10-r20.json"
    facts = json.loads(path.read_text())
    facts["predicted"]["num_workers"], facts["data"] = 4, "fineweb-edu"
    path.write_text(json.dumps(facts))
    finish_run(storage, "d10", bits, began=time.time() + 60, head_dim=128)

    told = grade(str(storage), "d10", None)

    assert "The run had 2 workers, the forecast 4: its 1 h are counted as 0.5 h." in told
    assert "The run has head_dim 128, the forecast is for 64." in told
    assert "trained on embedded texts, the sweep on fineweb-edu" in told


def test_memory_and_core_are_compared_where_both_are_known(made: tuple[Path, float]) -> None:
    storage, bits = made
    path = storage / "s" / "forecast-d10-r20.json"
    facts = json.loads(path.read_text())
    facts["predicted"]["memory_per_gpu_bytes"] = 2 * 2**30
    facts["predicted"]["core"] = {"value": 0.2, "low": 0.19, "high": 0.21}
    path.write_text(json.dumps(facts))
    finish_run(storage, "d10", bits, began=time.time() + 60)
    folder = RunFolder(str(storage), "d10").stage("pretrain")
    report = {
        "step": 2,
        "tasks": [],
        "means": {"CORE": {"value": 0.25, "interval_95": [0.24, 0.26]}},
    }
    write_json(folder.fs, folder.path("evals", "step_000002", "report-core.json"), report)

    grade(str(storage), "d10", None)

    rows = json.loads((storage / "s" / "grade-d10.json").read_text())["rows"]
    assert rows["CORE"] == {
        "forecast": {"value": 0.2, "low": 0.19, "high": 0.21},
        "measured": 0.25,
        "verdict": "OUTSIDE",
    }
    assert rows["memory, GiB"]["verdict"] == "-50.0 %, no interval was given"


def test_a_trial_of_a_sweep_can_be_graded(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "s/d10-r20", bits, began=time.time() + 60)

    grade(str(storage), "s/d10-r20", "s")

    assert (storage / "s" / "grade-s-d10-r20.json").exists()


def test_what_cannot_be_graded_is_named(made: tuple[Path, float]) -> None:
    storage, bits = made
    with pytest.raises(InputError, match="d10/pretrain holds no run"):
        grade(str(storage), "d10", None)

    finish_run(storage, "d10", bits, began=time.time() + 60)
    with pytest.raises(InputError, match="depth 10 and ratio 20, of which other holds no forecast"):
        grade(str(storage), "d10", "other")

    folder = RunFolder(str(storage), "d10")
    folder.forget_stage("pretrain")
    with pytest.raises(InputError, match="d10 has not finished pretraining: it stands at step 2"):
        grade(str(storage), "d10", None)


def test_the_number_of_workers_is_told_by_speed_and_utilization(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "d10", bits, began=0.0)

    found = measure(RunFolder(str(storage), "d10").stage("pretrain"))

    assert (found.num_workers, found.depth) == (2, 10)
    assert found.tokens_per_param == pytest.approx(20, rel=1e-3)
    assert read_json(RunFolder(str(storage), "d10").fs, f"{storage}/d10/run.json") is not None


def test_the_job_grades_a_run_by_its_name(made: tuple[Path, float]) -> None:
    storage, bits = made
    finish_run(storage, "d10", bits + 1e-4, began=time.time() + 60)

    done = subprocess.run(
        [sys.executable, JOB, "--grade", "d10", "--storage", storage],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    assert f"{storage}/s/grade-d10.json" in done.stdout


def test_a_run_or_a_trial_is_named_as_such() -> None:
    assert ForecastConfig(grade="s/d4-r10").grade == "s/d4-r10"
    with pytest.raises(InputError, match="--grade 'x::y' cannot name a folder"):
        ForecastConfig(grade="s/x::y")
