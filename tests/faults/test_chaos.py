"""`jobs/chaos.py` against clusters of several nodes on this machine: the kill matrix."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanoray.ops.chaos_faults import FAULTS
from tests.running import run_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ON_FILES = ("worker", "freeze", "driver", "node", "partition", "storage", "damage")
"""Those that need no filesystem of their own, and no notice that is longer than the run."""


def harmed(storage: Path, *flags: object) -> list[dict[str, Any]]:
    """Run chaos on a cluster of its own, and give its trials."""
    command = ("--storage", storage, "--nodes", 3, "--json", *flags)
    code, output = run_job("chaos.py", *command, timeout=3600)
    assert code == 0, output
    [result] = [line for line in output.splitlines() if line.startswith("[{")]
    trials: list[dict[str, Any]] = json.loads(result)
    return trials


@pytest.mark.timeout(3700)
@pytest.mark.parametrize("fault", ON_FILES)
def test_each_fault_at_five_moments_leaves_the_undisturbed_run(tmp_path: Path, fault: str):
    assert fault in FAULTS

    trials = harmed(tmp_path, "--faults", fault, "--seeds", 5)

    assert [trial["is_equal"] for trial in trials] == [True] * 5
    for trial in trials:
        [injury] = trial["injuries"]
        assert injury["training_after"] is not None
        # A save interval, and with a damaged checkpoint or one under way another.
        assert injury["lost_steps"] <= 40
