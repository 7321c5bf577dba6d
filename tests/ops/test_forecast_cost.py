"""What a forecast run takes, and the best depth for a budget."""

import dataclasses
import json

import numpy as np
import pytest

from nanoray.config import InputError
from nanoray.model.scaling import gpu_peak_flops
from nanoray.ops.forecast_cost import Machine, best_depth, choose_machine, run_facts, size_of
from nanoray.ops.forecast_trials import choose_trials
from nanoray.ops.plan import PlanConfig, plan
from nanoray.ops.scaling_law import fit_law
from nanoray.ops.trial_table import TrialRow
from nanoray.stages.pretrain_config import PretrainConfig
from tests.ops.synthetic_sweep import SMALL, loss_of, trials

D34 = PretrainConfig(depth=34, tokens_per_param=40, device_batch_size=4)


def machine(rows: list[TrialRow], **asked: object) -> Machine:
    """Choose the machine with some flags given."""
    usual = {"gpu": None, "mfu": None, "dollars_per_gpu_hour": 3.0, "num_workers": None}
    flags = {**usual, "most_workers": 256, **asked}
    return choose_machine(rows, **flags)  # type: ignore[arg-type]  # of many types


def test_d34_takes_what_the_plan_says_and_what_was_published() -> None:
    chosen = machine(trials([4], ratios=[5]), gpu="h100")
    planned = json.loads(
        plan(PlanConfig(pretrain=dataclasses.replace(D34, num_workers="8"), json=True))
    )

    facts = run_facts(D34, chosen)

    for name in ("tokens", "total_flops", "memory_per_gpu_bytes", "parameters"):
        assert facts[name] == planned[name]
    assert chosen.hours(facts["total_flops"]).value == pytest.approx(planned["hours"])
    assert chosen.hours(facts["total_flops"]).value == pytest.approx(93.7, abs=0.1)
    dollars = chosen.dollars(facts["total_flops"])
    assert dollars is not None
    assert dollars.value == pytest.approx(planned["dollars"])


def test_no_more_gpus_are_taken_than_a_step_has_rows_unless_they_were_asked_for() -> None:
    rows = trials([4], ratios=[5])

    assert machine(rows, gpu="h100", most_workers=2).num_workers == 2
    assert machine(rows, gpu="h100", most_workers=2, num_workers=8).num_workers == 8


def test_gpus_of_the_sweep_keep_the_speed_that_they_had() -> None:
    rows = trials([10, 12], flops=[1e18, 2e18, 4e18], on_gpu=True)
    rows[-1] = dataclasses.replace(rows[-1], tokens_per_second=rows[-1].tokens_per_second * 0.5)

    chosen = machine(rows)

    assert chosen.num_workers == 8
    assert chosen.flops_per_second.value == pytest.approx(0.42e15)
    assert chosen.flops_per_second.low == pytest.approx(0.21e15)
    assert f"{100 * 0.42e15 / 989e12:.1f} % MFU" in chosen.source
    hours = chosen.hours(1e20)
    assert hours.high == pytest.approx(2 * hours.value)


def test_a_given_utilization_is_taken_instead_of_the_measured_one() -> None:
    rows = trials([10, 12], flops=[1e18, 2e18], on_gpu=True)

    chosen = machine(rows, mfu=0.3)

    assert chosen.flops_per_second.value == pytest.approx(0.3 * 989e12)
    assert gpu_peak_flops(rows[0].device) == 989e12


def test_cpus_have_time_and_no_price() -> None:
    chosen = machine(trials([4, 5], ratios=[5, 10]))

    assert (chosen.num_workers, chosen.dollars(1e15)) == (2, None)
    assert chosen.hours(1e15).value == pytest.approx(1e15 / 2e11 / 3600)
    small = PretrainConfig(depth=6, tokens_per_param=10, vocab_size=8192, max_seq_len=512)
    assert run_facts(small, chosen)["memory_per_gpu_bytes"] is None


def test_money_buys_flops_and_flops_cost_money() -> None:
    chosen = machine(trials([4], ratios=[5]), gpu="h100")

    price = chosen.dollars(chosen.flops_for(500))

    assert price is not None
    assert price.value == pytest.approx(500)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"gpu": "abacus"}, "--gpu abacus is not in the table"),
        ({"mfu": 0.4}, "--mfu 0.4 is of a GPU, and the trials ran on CPUs"),
    ],
)
def test_a_machine_that_cannot_be_is_named(asked: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as raised:
        machine(trials([4], ratios=[5]), **asked)

    assert sentence in str(raised.value)


def test_a_gpu_that_nobody_knows_the_speed_of_is_named() -> None:
    rows = trials([4], ratios=[5], device="Abacus 9000", tokens_per_second=0.0)

    with pytest.raises(InputError, match="The speed of Abacus 9000 is not known"):
        machine(rows)


def test_money_without_a_price_is_refused() -> None:
    with pytest.raises(InputError, match=r"--budget-dollars 5 buys nothing .* for cpu"):
        machine(trials([4], ratios=[5])).flops_for(5)


def test_the_best_depth_is_that_of_the_true_law() -> None:
    chosen = choose_trials(trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40], noise=1e-5), "s")
    law = fit_law(chosen.points, draws=50)
    flops = 4e17
    sizes = np.array([size_of(depth, chosen.shape) for depth in range(1, 40)])
    true = int(loss_of(SMALL, sizes, flops / chosen.cost(sizes)).argmin()) + 1

    best = best_depth(law, flops, chosen.shape, 0.9)

    assert abs(best.depth - true) <= 1
    assert best.depths[0] <= true <= best.depths[1]
    assert not best.is_at_end
    per_token = chosen.cost(np.array([size_of(best.depth, chosen.shape)]))[0]
    assert best.tokens * per_token == pytest.approx(flops)


def test_heads_that_do_not_divide_a_width_leave_its_depth_out() -> None:
    rows = trials([4, 6, 8], ratios=[5, 10, 20], head_dim=128)
    chosen = choose_trials(rows, "s")

    best = best_depth(fit_law(chosen.points, draws=20), 1e17, chosen.shape, 0.9)

    assert best.depth % 2 == 0


def test_a_gpu_that_no_trial_ran_on_and_nobody_knows_is_named() -> None:
    with pytest.raises(InputError, match="--gpu cpu is not in the table"):
        machine(trials([4], ratios=[5], device="NVIDIA H100 80GB HBM3"), gpu="cpu")
