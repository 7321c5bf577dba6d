"""Several faults at once, and a cluster that is not to be had: what the doctor tells is whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanoray.cluster.head import versions_differ
from nanoray.ops.doctor import no_cluster
from nanoray.ops.doctor_findings import Status
from tests.ops.test_doctor import FLAGS, examine
from tests.running import Cluster, run_job, small_corpus


def statuses(found: dict[str, Any], *checks: str) -> dict[str, Status]:
    """Give how some checks ended; each must be there."""
    return {check: Status(found[check]["status"]) for check in checks}


@pytest.fixture
def broken_tokenizer(tmp_path: Path) -> Path:
    (tmp_path / "broken.json").write_bytes(bytes(range(128, 256)))
    return tmp_path / "broken.json"


@pytest.mark.cluster
def test_faults_of_storage_data_tokenizer_and_room_are_told_at_once(
    ray_cluster: Cluster, tmp_path: Path, broken_tokenizer: Path
):
    flags = ("--storage", "/proc/none", "--data", tmp_path, "--tokenizer", broken_tokenizer)

    code, found = examine(ray_cluster, "--quick", "--depth", 2, "--num-workers", 500, *flags)

    assert code == 1
    faults = ("storage", "data", "tokenizer", "room")
    assert set(statuses(found, *faults).values()) == {Status.FAILED}
    unknown = statuses(found, "settings", "storage space")
    assert set(unknown.values()) == {Status.SKIPPED}
    assert found["settings"]["found"] == (
        "the tokenizer cannot be read: 8,192 ids are assumed for the rest"
    )


@pytest.mark.cluster
def test_settings_that_do_not_work_out_hide_no_other_fault(
    ray_cluster: Cluster, tmp_path: Path, broken_tokenizer: Path
):
    flags = ("--storage", broken_tokenizer, "--data", tmp_path, "--tokenizer", broken_tokenizer)
    shape = ("--depth", 3, "--head-dim", 128, "--num-workers", 500)

    code, found = examine(ray_cluster, "--quick", *shape, *flags)

    assert code == 1
    faults = ("settings", "storage", "data", "tokenizer", "room")
    assert set(statuses(found, *faults).values()) == {Status.FAILED}
    assert found["settings"]["remedy"] == "Give --head-dim 32 or 64, or another depth."


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["a file", "without credentials", "of no protocol"])
def test_a_storage_that_is_none_is_told_by_its_own_check(
    ray_cluster: Cluster, tmp_path: Path, kind: str
):
    (tmp_path / "file").touch()
    addresses = {"a file": f"{tmp_path}/file", "without credentials": "s3://nobucket-x/y"}
    storage = addresses.get(kind, "foo://bar")
    nobody = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    flags = ("--quick", "--storage", storage, "--data", small_corpus(tmp_path / "data"))

    code, found = examine(ray_cluster, *flags, *FLAGS, **nobody)

    assert code == 1
    assert [each["check"] for each in found.values() if each["status"] == Status.FAILED] == [
        "storage"
    ]
    assert found["settings"]["status"] == Status.SKIPPED
    assert found["settings"]["found"].startswith("the storage does not answer")
    assert statuses(found, "room", "data") == {"room": Status.OK, "data": Status.OK}
    assert statuses(found, "tokenizer") == {"tokenizer": Status.SKIPPED}


@pytest.mark.slow
@pytest.mark.cluster
def test_memory_is_measured_for_those_who_find_room(ray_cluster: Cluster, tmp_path: Path):
    flags = ("--storage", tmp_path / "runs", "--num-workers", 500, *FLAGS)

    code, found = examine(ray_cluster, *flags)

    assert code == 1
    assert statuses(found, "room", "memory") == {"room": Status.FAILED, "memory": Status.OK}
    assert found["memory"]["found"].startswith("with 1 worker(s), for whom there is room: a step")


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("127.0.0.1:1", "Start one, or unset RAY_ADDRESS to work here."),
        ("nonsense", "Give RAY_ADDRESS as HOST:PORT, as ray start prints it, or unset it"),
        ("http://127.0.0.1:8265", "Submit the job there with `ray job submit -- python jobs/"),
    ],
)
def test_no_cluster_is_a_finding_too(address: str, remedy: str):
    code, output = run_job("doctor.py", "--json", "--quick", env={"RAY_ADDRESS": address})

    assert code == 1
    facts = json.loads(output)
    cluster, *others = facts["findings"]
    assert facts["verdict"].startswith("1 FAILED: cluster; ")
    assert (cluster["check"], cluster["status"]) == ("cluster", Status.FAILED)
    assert cluster["remedy"].startswith(remedy)
    assert {other["status"] for other in others} == {Status.SKIPPED}
    assert {"nodes", "settings", "storage", "data"} < {other["check"] for other in others}


@pytest.mark.cluster
def test_a_token_that_is_refused_is_a_finding_too(ray_cluster: Cluster):
    code, found = examine(ray_cluster, "--quick", RAY_AUTH_TOKEN_PATH="/nowhere/token")

    assert code == 1
    assert found["token"]["status"] == Status.FAILED
    assert found["token"]["remedy"].startswith("Copy the head's ~/.ray/auth_token here")
    assert found["nodes"]["status"] == Status.SKIPPED


def test_other_versions_are_a_finding_too():
    diagnosis = no_cluster(versions_differ("Version mismatch:\n  Ray: 2.59.1"), 1.0, quick=True)

    (finding,) = diagnosis.having(Status.FAILED)
    assert finding.check == "versions"
    assert finding.remedy == "Install the same Ray and Python on both."
    assert diagnosis.has_failed
