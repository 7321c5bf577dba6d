"""What a sweep is told."""

import pytest

from nanoray.config import InputError
from nanoray.ops.sweep_config import SweepConfig
from nanoray.stages.pretrain_config import PretrainConfig


def test_axes_are_read() -> None:
    grid = SweepConfig(depths="6,4", ratios="5,10", seeds="1,2").grid

    assert (grid.depths, grid.ratios, grid.flops, grid.seeds) == (
        (4, 6),
        (5.0, 10.0),
        (),
        (1, 2),
    )
    assert len(grid) == 8


def test_one_seed_may_be_given_as_for_a_single_run() -> None:
    config = SweepConfig(depths="4", flops="1e18", pretrain=PretrainConfig(seed=7))

    assert config.grid.seeds == (7,)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "--depths"),
        ({"depths": "4"}, "--ratios"),
        ({"depths": "4", "ratios": "5", "flops": "1e18"}, "--flops"),
        ({"depths": "4", "ratios": "5", "max_flops": 0.0}, "--max-flops 0 pays for nothing"),
        ({"depths": "4", "ratios": "5", "max_worker_hours": -1.0}, "--max-worker-hours -1"),
        ({"depths": "4", "ratios": "5", "trials_at_once": 0}, "--trials-at-once 0"),
        (
            {"depths": "4", "ratios": "5", "pretrain": PretrainConfig(num_workers="2:8")},
            "--num-workers 2:8 is a range",
        ),
        ({"depths": "4", "ratios": "5", "pretrain": PretrainConfig(depth=4)}, "--depth"),
        ({"depths": "4", "ratios": "5", "seeds": f"1,{2**64}"}, f"--seeds {2**64} does not work"),
        ({"compare": ("a", "b*")}, r"--compare 'b\*' cannot name a folder"),
    ],
)
def test_wrong_input_is_told_in_one_sentence(settings, named) -> None:
    with pytest.raises(InputError, match=named):
        SweepConfig(**settings)


def test_two_sweeps_are_compared_without_axes() -> None:
    assert SweepConfig(compare=("a", "b")).compare == ("a", "b")


@pytest.mark.parametrize(
    ("settings", "seconds", "told"),
    [
        ({}, None, ""),
        ({"max_worker_hours": 2.0}, 7200.0, "--max-worker-hours 2"),
        ({"pretrain": PretrainConfig(max_cost=30.0)}, 36_000.0, "--max-cost 30"),
        (
            {"max_worker_hours": 2.0, "pretrain": PretrainConfig(max_cost=3.0)},
            3600.0,
            "--max-worker-hours 2 and --max-cost 3",
        ),
    ],
)
def test_the_smaller_budget_holds(settings, seconds, told) -> None:
    config = SweepConfig(depths="4", ratios="5", **settings)

    assert config.most_seconds("cpu") == seconds
    assert config.budget == told
