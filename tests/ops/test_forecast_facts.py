"""What a forecast says."""

import dataclasses
import json

import numpy as np
import pytest

from nanoray.config import InputError
from nanoray.ops.forecast import stand_on
from nanoray.ops.forecast_cost import choose_machine, run_facts
from nanoray.ops.forecast_facts import Basis, Facts, gather, law_for
from nanoray.ops.forecast_trials import choose_trials
from nanoray.ops.scaling_fit import fit_all
from nanoray.ops.trial_table import TrialRow
from nanoray.stages.pretrain_config import PretrainConfig
from tests.ops.synthetic_sweep import SMALL, loss_of, trials


def facts_of(rows: list[TrialRow], depth: int, ratio: float) -> tuple[Facts, Basis]:
    """Make the facts of a forecast from a sweep on CPUs."""
    chosen = choose_trials(rows, "s")
    machine = choose_machine(
        chosen.used,
        gpu=None,
        mfu=None,
        dollars_per_gpu_hour=3.0,
        num_workers=None,
        most_workers=32,
    )
    asked = PretrainConfig(
        depth=depth,
        tokens_per_param=ratio,
        vocab_size=chosen.shape.vocab_size,
        max_seq_len=chosen.shape.max_seq_len,
        head_dim=chosen.shape.head_dim,
        total_batch_tokens=16_384,
    )
    run = run_facts(asked, machine)
    basis = stand_on(chosen, depth, "memory://nowhere", 0.9)
    return gather(basis, run, machine, {"the same compute": run["total_flops"]}), basis


def test_the_loss_of_a_larger_model_lies_in_its_interval() -> None:
    facts, _ = facts_of(trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40]), 10, 20)

    size, tokens = facts["run"]["scaling_parameters"], facts["run"]["tokens"]
    true = loss_of(SMALL, np.array([size]), np.array([tokens]))[0]
    bits = facts["predicted"]["bits_per_byte"]
    assert bits["low"] < true < bits["high"]
    assert bits["value"] == pytest.approx(true, rel=0.01)
    assert json.loads(json.dumps(facts)) == facts


def test_how_far_outside_the_measured_range_it_lies_is_said_with_the_factor() -> None:
    rows = trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40])
    most = max(row.flops for row in rows)

    near, far = (facts_of(rows, depth, ratio)[0] for depth, ratio in ((6, 20), (16, 80)))

    assert near["notes"] == []
    factor = far["run"]["total_flops"] / most
    assert f"The run takes {factor:,.3g} times the FLOPs of the largest trial." in far["notes"][0]
    assert "far outside the measured range" in far["notes"][0]
    assert far["notes"][1:] == [
        "Depths 4 to 8 were tried, not 16.",
        "Ratios 5 to 40 were tried, not 80.",
    ]


def test_one_depth_still_forecasts_itself_and_says_what_is_impossible() -> None:
    facts, basis = facts_of(trials([6], ratios=[5, 10, 20, 40, 80]), 6, 120)

    assert not basis.law.has_size
    assert "needs 3 depths, and the sweep has 1" in facts["fits"]["impossible"]["law"]
    assert "needs 3 sizes" in facts["fits"]["impossible"]["isoflop"]
    assert facts["best"] == {}
    bits = facts["predicted"]["bits_per_byte"]
    assert bits["low"] < bits["value"] < bits["high"]
    assert len(facts["back_test"]["trials"]) == 1


@pytest.mark.parametrize(
    ("rows", "depth", "sentence"),
    [
        (
            trials([6], ratios=[5, 10, 20, 40]),
            8,
            "--depth 8 cannot be forecast. The law L = E + A/N^a + B/D^b needs 3 depths, and the "
            "sweep has 1. Add depths. What still works: --depth 6, by a law of tokens alone.",
        ),
        (
            trials([4, 6], ratios=[5, 10]),
            6,
            "--depth 6 cannot be forecast. The law L = E + A/N^a + B/D^b needs 3 depths, and the "
            "sweep has 2. Add depths. The law L = E + B/D^b of one depth needs 4 trials of 3 "
            "lengths, not 2 of 2. Add ratios.",
        ),
        (
            trials([4, 5, 6], ratios=[5]),
            8,
            "needs 6 trials for its 5 constants, not 3. Add some. No depth has trials enough",
        ),
    ],
)
def test_too_few_trials_are_refused_with_what_still_works(
    rows: list[TrialRow], depth: int, sentence: str
) -> None:
    chosen = choose_trials(rows, "s")

    with pytest.raises(InputError) as raised:
        law_for(depth, chosen, fit_all(chosen.points, chosen.cost, draws=10))

    assert sentence in str(raised.value)


def test_a_back_test_that_failed_takes_the_trust_away() -> None:
    rows = trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40])
    spoilt = [
        dataclasses.replace(row, bits_per_byte=1.1 * (row.bits_per_byte or 0))
        if row.depth == 8
        else row
        for row in rows
    ]

    facts, _ = facts_of(spoilt, 9, 10)

    assert facts["back_test"]["num_inside"] < 2
    assert "The back-test failed" in facts["notes"][-1]


def test_published_rules_of_counting_are_kept() -> None:
    rows = trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40])

    facts, basis = facts_of(rows, 10, 20)

    assert facts["run"]["scaling_parameters"] == 54_394_880  # 12 * 10 * 640^2 + 8192 * 640
    assert list(basis.points.size) == [float(row.scaling_parameters) for row in rows]
    assert list(basis.points.flops) == [row.flops for row in rows]
