"""Trials on Ray Tune; whole sweeps are in test_sweep.py."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.util.placement_group import validate_placement_group

from nanoray.cluster.connection import connect
from nanoray.cluster.placement import ON_DEMAND, for_lasting
from nanoray.ops.local_cluster import LocalCluster
from nanoray.ops.tune_trials import booking, last_line

SPOT = {"ray.io/market-type": "spot"}


def test_of_an_error_its_last_line_is_kept() -> None:
    error = ValueError("first line\nand more")

    assert last_line(error) == "and more"
    assert last_line(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("labels", [{}, ON_DEMAND])
def test_what_is_booked_for_a_driver_is_what_ray_takes(labels: dict[str, str]) -> None:
    booked: Any = booking(labels)  # Any: what Tune hands to Ray is not public

    bound = booked._bound.arguments

    validate_placement_group(**bound)
    assert bound["bundles"] == [{"memory": 1.0}]
    assert bound.get("bundle_label_selector") == ([labels] if labels else None)
    assert pickle.loads(pickle.dumps(booking(labels))) == booking(labels)
    assert hash(booking(labels)) == hash(booking(dict(labels)))


@pytest.mark.slow
@pytest.mark.cluster
def test_drivers_of_trials_are_on_the_node_that_no_spot_market_takes_away(tmp_path: Path) -> None:
    cluster = LocalCluster(0, cpus_per_node=1, head_labels=ON_DEMAND)
    try:
        for _ in range(2):
            cluster.add_node(labels=SPOT)
        connect(cluster.address)
        (head,) = [n["NodeID"] for n in ray.nodes() if ON_DEMAND.items() <= n["Labels"].items()]

        def drive(asked: dict[str, int]) -> None:
            tune.report({"node": ray.get_runtime_context().get_node_id()})

        results = tune.Tuner(
            tune.with_resources(drive, booking(for_lasting())),
            param_space={"trial": tune.grid_search(list(range(6)))},
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()

        assert {(results[i].metrics or {}).get("node") for i in range(6)} == {head}
    finally:
        cluster.stop()
