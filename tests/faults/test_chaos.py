"""`jobs/chaos.py` against clusters of several nodes on this machine: the kill matrix."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanoray.ops.chaos import SMALL_RUN
from nanoray.ops.chaos_faults import FAULTS
from tests.disks import own_filesystem
from tests.running import run_job

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SAVE_EVERY = 20
"""Steps, of `SMALL_RUN`; each takes some milliseconds."""
WHILE_SAVING = 10
"""Steps that are made while a checkpoint is written: what is killed then goes back behind it."""
AT_ONCE = ("worker", "freeze", "driver", "node", "partition", "damage")
"""Faults that need no time in which the run goes on."""
LONGER_RUN = SMALL_RUN.replace("--num-steps 400", "--num-steps 2000")
"""For those that do: a node trains on until its notice is over, a disk is full for a while."""


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that may be filled without harm to the machine's."""
    with own_filesystem(tmp_path / "disk", "300m") as disk:
        yield disk


def harmed(storage: Path, *flags: object, nodes: int = 3) -> list[dict[str, Any]]:
    """Run chaos on a cluster of its own, and give its trials."""
    command = ("--storage", storage, "--nodes", nodes, "--json", *flags)
    code, output = run_job("chaos.py", *command, timeout=3600)
    assert code == 0, output
    [result] = [line for line in output.splitlines() if line.startswith("[{")]
    trials: list[dict[str, Any]] = json.loads(result)
    return trials


def check(trials: list[dict[str, Any]], *, most_lost: int) -> None:
    """Check that runs equal the undisturbed one, and lost no more steps than they may."""
    assert [trial["is_equal"] for trial in trials] == [True] * len(trials)
    injuries = [injury for trial in trials for injury in trial["injuries"]]
    assert len(injuries) == len(trials)
    assert [injury for injury in injuries if injury["training_after"] is None] == []
    assert [injury for injury in injuries if injury["lost_steps"] > most_lost] == []


def test_every_fault_is_tried() -> None:
    assert {*AT_ONCE, "storage", "disk", "preemption"} == set(FAULTS)


@pytest.mark.timeout(3700)
@pytest.mark.parametrize("fault", AT_ONCE)
def test_each_fault_at_five_moments_leaves_the_undisturbed_run(tmp_path: Path, fault: str) -> None:
    trials = harmed(tmp_path, "--faults", fault, "--seeds", 5)

    # The newest checkpoint is the one that is damaged, so the one before it counts.
    intervals = 2 if fault == "damage" else 1
    check(trials, most_lost=intervals * SAVE_EVERY + WHILE_SAVING)


@pytest.mark.timeout(3700)
def test_a_node_that_is_taken_after_a_notice_costs_a_save_interval(tmp_path: Path) -> None:
    flags = ("--outage-seconds", 5, f"--pretrain={LONGER_RUN}")

    trials = harmed(tmp_path, "--faults", "preemption", "--seeds", 5, *flags)

    # It saves at the notice, and trains and saves on until the node is gone.
    check(trials, most_lost=SAVE_EVERY + WHILE_SAVING)


@pytest.mark.timeout(3700)
@pytest.mark.parametrize("fault", ["storage", "disk"])
def test_storage_that_fails_for_a_while_costs_no_step(
    tmp_path: Path, fault: str, request: pytest.FixtureRequest
) -> None:
    storage = request.getfixturevalue("own_disk") if fault == "disk" else tmp_path
    flags = ("--outage-seconds", 5, f"--pretrain={LONGER_RUN}")

    trials = harmed(storage, "--faults", fault, "--seeds", 5, *flags)

    check(trials, most_lost=0)


@pytest.mark.timeout(3700)
def test_ten_kills_in_one_run_leave_it_as_it_was_and_every_second_is_accounted_for(
    tmp_path: Path,
) -> None:
    flags = ("--per-run", 10, "--cpus-per-node", 4)

    [trial] = harmed(tmp_path, "--faults", "worker", *flags, nodes=1)

    assert trial["is_equal"]
    assert len(trial["injuries"]) == 10
    wall_seconds = trial["seconds"]["productive"] / trial["goodput"]
    assert sum(trial["seconds"].values()) == pytest.approx(wall_seconds, rel=0.01)


@pytest.mark.timeout(3700)
def test_a_run_of_flags_of_its_own_outlives_several_faults(tmp_path: Path):
    run = f"--pretrain={SMALL_RUN} --num-steps 300 --save-every 25"

    [trial] = harmed(tmp_path, "--faults", "worker", "driver", "node", "--per-run", 3, run)

    assert trial["is_equal"]
    assert len(trial["injuries"]) == 3
