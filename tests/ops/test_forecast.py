"""The whole of it, from the table of a sweep to files and card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.config import InputError, StorageError
from nanoray.ops.forecast import ForecastConfig, forecast
from nanoray.ops.trial_table import write_trials
from tests.ops.synthetic_sweep import trials

JOB = Path(__file__).parents[2] / "jobs" / "forecast.py"


def test_a_forecast_is_printed_and_kept_as_json_picture_and_page(tmp_path: Path) -> None:
    rows = trials([10, 12, 14, 16, 18], flops=[1e18, 2e18, 4e18], on_gpu=True)
    write_trials(str(tmp_path / "s"), rows)

    card = forecast(
        ForecastConfig(
            sweep="s",
            depth=34,
            ratio=40,
            storage=str(tmp_path),
            budget_dollars=500,
            budget_flops=1e20,
            device_batch_size=4,
        )
    )

    kept = json.loads((tmp_path / "s" / "forecast-d34-r40.json").read_text())
    assert kept["run"]["parameters"] == 2_217_082_880
    assert kept["run"]["tokens"] == 88_683_315_200
    assert list(kept["best"]) == ["the same compute", "1e+20 FLOPs", "$500"]
    assert kept["best"]["$500"]["dollars"]["value"] == pytest.approx(500)
    assert kept["predicted"]["memory_per_gpu_bytes"] > 40 * 2**30
    assert kept["recommendation"] in card
    assert "far outside the measured range" in card
    assert (tmp_path / "s" / "forecast-d34-r40.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "s" / "forecast-d34-r40.html").read_text()
    assert page.count("<svg") >= 5
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_an_earlier_forecast_stays_under_the_name_of_its_moment(tmp_path: Path) -> None:
    write_trials(str(tmp_path / "s"), trials([6], ratios=[5, 10, 20, 40]))
    config = ForecastConfig(sweep="s", depth=6, ratio=80, storage=str(tmp_path))

    forecast(config)
    first = json.loads((tmp_path / "s" / "forecast-d6-r80.json").read_text())
    forecast(config)

    (earlier,) = (tmp_path / "s").glob("forecast-d6-r80.made-*.json")
    assert json.loads(earlier.read_text()) == first
    assert json.loads((tmp_path / "s" / "forecast-d6-r80.json").read_text())["made"] > first["made"]


def test_a_sweep_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Give the name of a sweep that"):
        forecast(ForecastConfig(sweep="s", depth=6, ratio=80, storage=str(tmp_path)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "SWEEP and --depth and --ratio are not given. Write jobs/forecast.py SWEEP"),
        ({"sweep": "s", "depth": 6}, "--ratio is not given."),
        ({"sweep": "s", "depth": 0, "ratio": 5}, "--depth 0 is too small"),
        ({"sweep": "s", "depth": 6, "ratio": -5}, "--ratio -5 does not work"),
        ({"sweep": "s", "depth": 6, "ratio": float("nan")}, "--ratio nan does not work"),
        ({"sweep": "s", "depth": 6, "ratio": 5, "budget_flops": 0}, "--budget-flops 0 does not"),
        ({"sweep": "s", "depth": 6, "ratio": 5, "interval": 1.0}, "--interval 1 is no part"),
        ({"sweep": "s", "depth": 6, "ratio": 5, "mfu": 1.5}, "--mfu 1.5 is not a utilization"),
        ({"sweep": "s*", "depth": 6, "ratio": 5}, "SWEEP 's*' cannot name a folder"),
    ],
)
def test_what_cannot_be_asked_is_named(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        ForecastConfig(**fields)  # type: ignore[arg-type]  # one table for fields of many types

    assert sentence in str(raised.value)


def test_the_job_forecasts_and_refuses_in_one_sentence(tmp_path: Path) -> None:
    write_trials(str(tmp_path / "runs" / "s"), trials([6], ratios=[5, 10, 20, 40]))

    made, refused = (
        subprocess.run(
            [sys.executable, JOB, "s", "--depth", depth, "--ratio", "80"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        for depth in ("6", "8")
    )

    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("Forecast of depth 6 at ratio 80 from s")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --depth 8 cannot be forecast. The law")
    assert len(refused.stderr.splitlines()) == 1
