"""The trials of a sweep."""

import dataclasses

import pytest

from nanoray.config import InputError
from nanoray.ops.trials import (
    Grid,
    Surroundings,
    Trial,
    affordable,
    branch,
    check_base,
    describe_grid,
    flat_steps,
    plan_trials,
    read_numbers,
    workers_for,
)
from nanoray.stages.pretrain_config import PretrainConfig, schedule

AROUND = Surroundings(False, "float32", "/runs/sweep", "tokenizer", "manifest")
BASE = PretrainConfig(vocab_size=512, max_seq_len=64, total_batch_tokens=1024)


def grid(**axes) -> Grid:
    """Give two depths, two lengths and a seed, with some axes changed."""
    return Grid(**{"depths": (1, 2), "ratios": (1.0, 2.0), "flops": (), "seeds": (42,), **axes})


def names(trials: list[Trial]) -> list[str]:
    return [trial.name for trial in trials]


def test_every_depth_meets_every_length_and_seed() -> None:
    trials = plan_trials(BASE, grid(seeds=(1, 2)), AROUND)

    found = {(t.config.depth, t.config.tokens_per_param, t.config.seed) for t in trials}
    assert found == {(d, r, s) for d in (1, 2) for r in (1.0, 2.0) for s in (1, 2)}
    assert len(set(names(trials))) == len(trials) == 8


def test_a_name_says_what_a_trial_is() -> None:
    by_ratio = plan_trials(BASE, grid(depths=(2,), ratios=(0.5,)), AROUND)
    by_flops = plan_trials(BASE, grid(depths=(2,), ratios=(), flops=(1e11,)), AROUND)

    assert by_ratio[0].name.startswith("d2-r0.5-s42-")
    assert by_flops[0].name.startswith("d2-c1e11-s42-")
    assert by_ratio[0].config.run == by_ratio[0].name


def test_a_trial_keeps_its_name_whatever_does_not_decide_its_result() -> None:
    calm = plan_trials(BASE, grid(), AROUND)
    other = dataclasses.replace(BASE, save_every=7, eager=True, num_workers="2", keep_last=9)

    assert names(plan_trials(other, grid(), AROUND)) == names(calm)
    wider = plan_trials(BASE, grid(depths=(1, 2, 3)), AROUND)
    assert set(names(calm)) < set(names(wider))


@pytest.mark.parametrize(
    ("base", "around"),
    [
        (dataclasses.replace(BASE, matrix_lr=0.03), AROUND),
        (dataclasses.replace(BASE, total_batch_tokens=2048), AROUND),
        (BASE, dataclasses.replace(AROUND, tokenizer_hash="another")),
        (BASE, dataclasses.replace(AROUND, manifest_hash="another")),
        (BASE, dataclasses.replace(AROUND, dtype="bfloat16")),
    ],
)
def test_whatever_decides_a_result_is_in_the_name(base, around) -> None:
    assert not set(names(plan_trials(base, grid(), around))) & set(
        names(plan_trials(BASE, grid(), AROUND))
    )


def test_a_trial_too_short_for_a_step_is_named() -> None:
    with pytest.raises(InputError, match=r"--tokens-per-param 0\.0001 is less than one step"):
        plan_trials(BASE, grid(ratios=(0.0001,)), AROUND)


@pytest.mark.parametrize(
    ("name", "text", "kind", "numbers"),
    [
        ("depths", "8,4, 6,4", int, (4, 6, 8)),
        ("ratios", "0.5,20", float, (0.5, 20.0)),
        ("flops", "2e18,1e18", float, (1e18, 2e18)),
        ("seeds", "0,1", int, (0, 1)),
    ],
)
def test_numbers_are_read_once_each_and_rising(name, text, kind, numbers) -> None:
    assert read_numbers(name, text, kind) == numbers


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("depths", "4,six", int),
        ("depths", "4,", int),
        ("depths", "0", int),
        ("depths", "4.5", int),
        ("ratios", "-1", float),
        ("ratios", "nan", float),
        ("flops", "inf", float),
    ],
)
def test_what_is_no_number_is_named(name, text, kind) -> None:
    with pytest.raises(InputError, match=f"--{name} {text}"):
        read_numbers(name, text, kind)


@pytest.mark.parametrize(
    ("base", "named"),
    [
        (PretrainConfig(depth=4), "--depth"),
        (PretrainConfig(tokens_per_param=4.0), "--tokens-per-param"),
        (PretrainConfig(num_steps=4), "--num-steps"),
        (PretrainConfig(fresh=True), "--fresh"),
        (PretrainConfig(core_every=5), "--core-every"),
    ],
)
def test_what_a_sweep_decides_itself_cannot_be_given(base, named) -> None:
    with pytest.raises(InputError, match=named):
        check_base(base)


def test_a_branch_begins_where_the_rates_of_both_are_still_the_same() -> None:
    trials = branch(plan_trials(BASE, grid(ratios=(1.0, 1.2, 4.0)), AROUND))

    for trial in trials:
        if trial.trunk is None:
            continue
        trunk = next(t for t in trials if t.name == trial.trunk)

        own, others = (schedule(t.config, t.length.num_steps) for t in (trial, trunk))
        shared = range(trial.branch_step)
        assert [own.lr_multiplier(s) for s in shared] == [others.lr_multiplier(s) for s in shared]
        assert own.lr_multiplier(trial.branch_step + 1) < 1
        assert trial.branch_step in trunk.config.save_at
        assert trunk.config.depth == trial.config.depth
    assert [t.trunk is None for t in trials] == [False, False, True] * 2


def test_a_trial_nearly_as_long_as_the_longest_is_trained_by_itself() -> None:
    trials = branch(plan_trials(BASE, grid(depths=(2,), ratios=(2.0, 2.01)), AROUND))
    falling = [t for t in trials if flat_steps(t) <= flat_steps(trials[-1])]

    assert len(falling) == 2
    assert trials[0].trunk == trials[1].name


def test_branches_save_compute_and_say_so() -> None:
    whole = plan_trials(BASE, grid(), AROUND)
    branched = branch(whole)

    assert sum(t.own_flops for t in branched) < sum(t.own_flops for t in whole)
    assert "less by branching" in describe_grid(grid(), branched)
    assert "less by branching" not in describe_grid(grid(), whole)


def test_rates_that_rise_over_a_part_of_the_run_cannot_branch() -> None:
    base = dataclasses.replace(BASE, warmup_ratio=0.1)

    with pytest.raises(InputError, match=r"--warmup-ratio 0\.1"):
        branch(plan_trials(base, grid(), AROUND))


@pytest.mark.parametrize(
    ("depth", "gpus", "workers"), [(10, 8, 1), (14, 64, 1), (20, 64, 8), (20, 4, 4)]
)
def test_small_models_take_one_gpu_and_large_ones_a_node(depth, gpus, workers) -> None:
    assert workers_for(depth, gpus) == workers


def test_a_budget_pays_for_the_cheapest_trials() -> None:
    trials = plan_trials(BASE, grid(), AROUND)
    cheap = sorted(trials, key=lambda t: t.length.flops)[:2]

    chosen = affordable(trials, sum(t.length.flops for t in cheap) * 1.001)

    assert chosen == set(names(cheap))


def test_a_branch_without_its_trunk_is_paid_for_as_a_whole_run() -> None:
    branched = branch(plan_trials(BASE, grid(), AROUND))
    branches = [t for t in branched if t.trunk is not None]
    budget = sum(t.own_flops for t in branches) * 1.001

    chosen = affordable(branched, budget)

    paid = [t for t in branched if t.name in chosen]
    whole = [t.length.flops if t.trunk not in (None, *chosen) else t.own_flops for t in paid]
    assert sum(whole) <= budget
    assert affordable(branches, budget) == set(names(branches))  # their trunks are done
