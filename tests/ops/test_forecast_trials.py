"""Which trials count."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from nanoray.config import InputError
from nanoray.ops.forecast_trials import choose_trials, data_of
from nanoray.ops.trial_table import Status
from tests.ops.synthetic_sweep import trials


def test_what_failed_or_diverged_is_left_out_by_name_with_its_reason() -> None:
    rows = trials([4, 5, 6], ratios=[5, 10, 20])
    rows[0] = dataclasses.replace(rows[0], status=Status.DIVERGED, reason="loss nan at step 40")
    rows[1] = dataclasses.replace(rows[1], status=Status.WAITING, bits_per_byte=None)
    rows[2] = dataclasses.replace(rows[2], bits_per_byte=float("nan"))

    chosen = choose_trials(rows, "s")

    assert chosen.left_out == {
        rows[0].name: "diverged: loss nan at step 40",
        rows[1].name: "waiting",
        rows[2].name: "its validation gave nan bits per byte",
    }
    assert chosen.used == rows[3:]


def test_trials_of_another_vocabulary_or_row_are_left_out_unless_asked_for() -> None:
    rows = trials([4, 5, 6], ratios=[5, 10])
    rows[0] = dataclasses.replace(rows[0], vocab_size=4096)

    usual, other = choose_trials(rows, "s"), choose_trials(rows, "s", vocab_size=4096)

    assert list(usual.left_out) == [rows[0].name]
    assert "4,096 ids and rows of 512 tokens" in usual.left_out[rows[0].name]
    assert other.used == rows[:1]


def test_mixed_devices_and_heads_are_told_of() -> None:
    rows = trials([4, 6], ratios=[5, 10])
    rows[0] = dataclasses.replace(rows[0], device="NVIDIA L4")
    rows[3] = dataclasses.replace(rows[3], head_dim=128)

    notes = choose_trials(rows, "s").notes

    assert "Heads of 64, 128 dimensions were tried" in notes[0]
    assert "1 on NVIDIA L4, 3 on cpu" in notes[1]


def test_a_sweep_without_results_is_named() -> None:
    failed = trials([4], ratios=[5, 10], status=Status.FAILED)

    with pytest.raises(InputError, match=r"s has no trial with a result \(2 failed\)"):
        choose_trials(failed, "s")
    with pytest.raises(InputError, match="its table is empty"):
        choose_trials([], "s")
    with pytest.raises(InputError, match="--vocab-size 300 and --max-seq-len 512"):
        choose_trials(trials([4], ratios=[5]), "s", vocab_size=300)


def test_costs_are_those_of_the_models_and_lie_between_them() -> None:
    chosen = choose_trials(trials([4, 6, 9], ratios=[5]), "s")
    points = chosen.points

    np.testing.assert_allclose(chosen.cost(points.size), points.flops / points.tokens, rtol=1e-9)
    between = chosen.cost(np.sqrt(points.size[:1] * points.size[1:2]))
    assert chosen.cost(points.size[:1]) < between < chosen.cost(points.size[1:2])


def test_the_data_are_read_from_the_config_of_a_trial(tmp_path: Path) -> None:
    rows = trials([4], ratios=[5, 10])
    assert data_of(rows, str(tmp_path)) is None

    for row, data in zip(rows, ("fineweb-edu", None), strict=True):
        (tmp_path / row.name / "pretrain").mkdir(parents=True)
        (tmp_path / row.name / "pretrain" / "config.json").write_text(json.dumps({"data": data}))

    assert data_of(rows, str(tmp_path)) == "fineweb-edu"
    assert data_of(rows[1:], str(tmp_path)) == "embedded texts"


def test_a_sweep_keeps_the_name_of_its_data_and_its_trials_the_place(tmp_path: Path) -> None:
    rows = trials([4], ratios=[5])
    stage = tmp_path / rows[0].name / "pretrain"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text(json.dumps({"data": "/cache/fineweb-edu"}))
    for named, told in (("fineweb-edu", "fineweb-edu"), (None, "embedded texts")):
        (tmp_path / "sweep.json").write_text(json.dumps({"base": {"data": named}, "trials": {}}))

        assert data_of(rows, str(tmp_path)) == told
