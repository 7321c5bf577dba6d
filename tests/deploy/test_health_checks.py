"""How soon a dead node is noticed: the same wherever a head is started."""

import re
from pathlib import Path

import pytest

from nanoray.ops.local_cluster import HEALTH_CHECKS

ROOT = Path(__file__).parents[2]
HEADS = (
    "cluster.yaml",
    "deploy/gcp.yaml",
    "deploy/kuberay/chat.yaml",
    "deploy/kuberay/cluster.yaml",
    "deploy/kuberay/pipeline.yaml",
    "deploy/slurm.sh",
    "docs/runbook.md",
)
SETTING = re.compile(r'\b(RAY_health_check_\w+)(?:=|, value: ")(\d+)')
MOST_SECONDS = 10
"""Of the 25 from the loss of a node to the next step; the rest is a group's start."""


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_started_with_the_health_checks_that_are_tested(name: str) -> None:
    settings = SETTING.findall((ROOT / name).read_text())

    assert dict(settings) == HEALTH_CHECKS
    assert len(settings) == len(HEALTH_CHECKS)


def test_a_node_that_answers_nothing_is_given_up_as_soon_as_the_documents_say() -> None:
    period, timeout, threshold = (
        int(HEALTH_CHECKS[f"RAY_health_check_{name}"])
        for name in ("period_ms", "timeout_ms", "failure_threshold")
    )

    seconds = threshold * (period + timeout) / 1000

    assert seconds <= MOST_SECONDS
    told = f"after {seconds:g} s"
    assert {name for name in HEADS if told not in (ROOT / name).read_text()} == {"deploy/slurm.sh"}
