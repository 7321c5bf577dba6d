"""What Prometheus hears of a run."""

import time

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from nanoray.cluster.gauges import FAILURES, GAUGES, SPENT, FailureGauge, RunGauges, exported
from nanoray.plots import PLOTS
from tests.driver import connected
from tests.running import Cluster

LONGEST_WAIT_SECONDS = 60.0
"""Ray sends its metrics every ten seconds."""

Samples = dict[tuple[str, str, str], float]


def scraped(run: str, wanted: set[str]) -> Samples:
    """Read what Ray exports of a run, until all that is wanted is there."""
    found: Samples = {}
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while not wanted <= {name for name, _, _ in found}:
        assert time.monotonic() < deadline, f"missing: {wanted - {name for name, _, _ in found}}"
        time.sleep(1)
        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        families = text_string_to_metric_families(httpx.get(address, timeout=10).text)
        found = {
            (s.name, s.labels["stage"], s.labels.get("category") or s.labels.get("cause", "")): (
                s.value
            )
            for family in families
            for s in family.samples
            if s.labels.get("run") == run
        }
    return found


@pytest.mark.cluster
def test_prometheus_hears_of_steps_and_failures(ray_cluster: Cluster) -> None:
    with connected(ray_cluster):
        gauges, failures = RunGauges("heard", "sft"), FailureGauge("heard", "sft")
        gauges.show({"step": 7, "train/loss": 2.5, "train/grad_norm": None})
        gauges.show({"train/loss": 2.25, "goodput/productive_seconds": 3.0, "cost/dollars": 1.5})
        failures.count("hang")
        failures.count("hang")

        found = scraped("heard", {f"ray_{SPENT}", f"ray_{FAILURES}"})

    assert found == {
        ("ray_nanoray_step", "sft", ""): 7.0,
        ("ray_nanoray_train_loss", "sft", ""): 2.25,
        ("ray_nanoray_cost_dollars", "sft", ""): 1.5,
        (f"ray_{SPENT}", "sft", "productive"): 3.0,
        (f"ray_{FAILURES}", "sft", "hang"): 2.0,
    }


def test_what_a_report_shows_is_exported() -> None:
    shown = {plot.key for plot in PLOTS} - {"eval/core"}

    assert shown <= set(GAUGES)
    assert exported("train/loss") == "nanoray_train_loss"
