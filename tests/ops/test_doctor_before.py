"""When the doctor looks before a stage, and for which machines it waits."""

import subprocess
import sys
from pathlib import Path

import pytest
from ray.util import placement_group, remove_placement_group

from nanoray.cluster.connection import Resources
from nanoray.config import InputError, RunConfig
from nanoray.ops.doctor_before import examine_for, examine_later
from nanoray.ops.doctor_findings import Diagnosis, failed, ok
from nanoray.storage import RunFolder, StageFolder
from tests.driver import connected
from tests.running import ROOT, Cluster

SMALL = Resources((1, 1), False, 1.0, 1, 1)
WELL = Diagnosis((ok("disks", "large"),), 1, 0.1)
ILL = Diagnosis((failed("disks", "full", "Make room."),), 1, 0.1)


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return RunFolder(str(tmp_path), "r").stage("sft")


def looks(
    config: RunConfig, stage: StageFolder, resources: Resources, found: Diagnosis = WELL
) -> list[bool]:
    """Give how the doctor looked: True for quickly."""
    looked: list[bool] = []

    def diagnosed(quick: bool) -> Diagnosis:
        looked.append(quick)
        return found

    examine_for(config, stage, resources, diagnosed)
    return looked


@pytest.mark.parametrize("asked", ["auto", "never"])
def test_a_small_stage_is_looked_at_only_if_that_is_asked_for(
    asked: str, stage: StageFolder
) -> None:
    assert looks(RunConfig(doctor=asked), stage, SMALL) == []


def test_a_stage_that_is_done_is_not_looked_at(stage: StageFolder) -> None:
    stage.run.mark_done("sft")

    assert looks(RunConfig(doctor="always"), stage, SMALL) == []


@pytest.mark.cluster
def test_what_failed_stops_a_stage_only_before_it_has_begun(
    ray_cluster: Cluster, stage: StageFolder
) -> None:
    config = RunConfig(doctor="always")
    with connected(ray_cluster):
        with pytest.raises(InputError, match=r"disks: full Make room\. Mend it, or give --doctor"):
            looks(config, stage, SMALL, ILL)
        stage.write_config({})
        begun = looks(config, stage, SMALL, ILL)

    assert begun == [False]


@pytest.mark.cluster
def test_nothing_is_measured_while_others_hold_what_the_stage_waits_for(
    ray_cluster: Cluster, stage: StageFolder
) -> None:
    with connected(ray_cluster):
        others = placement_group([{"CPU": 1.0}])
        others.wait(30)
        looked = looks(RunConfig(doctor="always"), stage, Resources((9, 9), False, 1.0, 1, 1))
        remove_placement_group(others)

    assert looked == [True]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_later_stage_has_its_machines_and_its_storage_looked_at(
    ray_cluster: Cluster, stage: StageFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(ray_cluster, PYTHONPATH=str(ROOT)), caplog.at_level("INFO"):
        examine_later(RunConfig(doctor="always"), stage, SMALL)

    assert "measuring speed and all-reduce" in caplog.text
    assert "doctor: nothing failed" in caplog.text


GROWING = """
import threading
import time
import ray
import nanoray.cluster.connection as connection
from nanoray.cluster.connection import Resources
from nanoray.ops.doctor_before import are_idle, are_there, bring_up
from nanoray.ops.local_cluster import LocalCluster

cluster = LocalCluster(1, 2)
connection.connect(cluster.address)
resources = Resources((2, 2), False, 2.0, 1, 1)
print(are_there(resources))
waiting = threading.Thread(target=bring_up, args=[resources])
waiting.start()
time.sleep(3)
print(waiting.is_alive())
cluster.add_node()
waiting.join()
print(are_there(resources), are_idle(resources))
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_machines_that_are_missing_are_waited_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", "True", "True"]
