"""cluster.yaml and deploy/gcp.yaml: by Ray's schema, by our rules, and on a simulated AWS."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import (
    ResourceRequestSource,
    SchedulingNode,
    SchedulingNodeStatus,
)
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated import common_pb2, instance_manager_pb2

from tests.deploy.launcher_rules import TOKEN, Config, least_driver, problems, types

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "deploy/gcp.yaml")
ROLE = "ray-autoscaler-v1"
"""What the launcher makes for heads."""


def load(name: str) -> Config:
    """Read a launcher's file."""
    config: Config = yaml.safe_load((ROOT / name).read_text())
    return config


@pytest.mark.parametrize("name", FILES)
def test_a_launcher_file_has_no_problem(name: str):
    assert problems(load(name)) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("group", "is_unplaced"), [("h100", False), ("chat", True)])
def test_the_autoscaler_knows_which_group_of_nodes_a_chat_waits_for(
    name: str, group: str, is_unplaced: bool
):
    operators: Any = common_pb2  # Any: generated, without types
    nodes: Any = instance_manager_pb2
    scaling = AutoscalingConfig(prepare_config(load(name)), skip_content_hash=True)
    kind = scaling.get_node_type_configs()["h100"]
    node = SchedulingNode.from_node_config(kind, SchedulingNodeStatus.TO_LAUNCH, nodes.WORKER)
    selector = [("ray.io/node-group", operators.LABEL_OPERATOR_IN, [group])]
    engine = ResourceRequestUtil.make({"GPU": 1.0}, label_selectors=[selector])

    unplaced, _ = node.try_schedule([engine], ResourceRequestSource.PENDING_DEMAND)

    assert bool(unplaced) is is_unplaced


def in_start(config: Config, kind: str, old: str, new: str) -> None:
    """Change a command that starts Ray; it must have been as was thought."""
    commands = config[f"{kind}_start_ray_commands"]
    assert any(old in command for command in commands)
    config[f"{kind}_start_ray_commands"] = [command.replace(old, new) for command in commands]


MUTATIONS: dict[str, tuple[Callable[[Config], object], str]] = {
    "CPUs on the head": (
        lambda c: types(c)[0]["resources"].update(CPU=8),
        "tasks can be scheduled on the head",
    ),
    "started with CPUs": (
        lambda c: in_start(c, "head", "--num-cpus=0", "--num-cpus=8"),
        "the head is started with CPUs or GPUs",
    ),
    "a worker that stays": (
        lambda c: types(c)[1]["h100"].update(min_workers=1),
        "h100 stays on without work",
    ),
    "an open dashboard": (
        lambda c: in_start(c, "head", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
        "the dashboard listens beyond the head",
    ),
    "Ray's choice of the dashboard's host": (
        lambda c: in_start(c, "head", "--dashboard-host=127.0.0.1", ""),
        "the dashboard listens beyond the head",
    ),
    "a head without a token": (
        lambda c: in_start(c, "head", "RAY_AUTH_MODE=token", ""),
        "Ray is started without token authentication",
    ),
    "a worker with tokens disabled": (
        lambda c: in_start(c, "worker", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "Ray is started without token authentication",
    ),
    "a token that is set but not exported": (
        lambda c: in_start(c, "worker", "export RAY_AUTH_MODE", "RAY_AUTH_MODE"),
        "Ray is started without token authentication",
    ),
    "a token that stays at home": (
        lambda c: c["file_mounts"].pop(TOKEN),
        "the token is not sent",
    ),
    "another folder": (
        lambda c: in_start(c, "head", "cd ~/nanoray && ", ""),
        "Ray is not started from the project's folder",
    ),
    "late health checks": (
        lambda c: in_start(c, "head", "RAY_health_check_period_ms=1000", ""),
        "a dead node is noticed late",
    ),
    "patient health checks": (
        lambda c: in_start(c, "head", "check_timeout_ms=2000", "check_timeout_ms=20000"),
        "a dead node is noticed late",
    ),
    "spot workers without a watch": (
        lambda c: c["worker_start_ray_commands"].pop(),
        "nobody watches for spot notices",
    ),
    "a watch before there is a node": (
        lambda c: c["worker_start_ray_commands"].reverse(),
        "nobody watches for spot notices",
    ),
    "a watch that ends with the launcher's terminal": (
        lambda c: in_start(c, "worker", 'trap "" HUP; ', ""),
        "nobody watches for spot notices",
    ),
    "a watch for which the launcher waits": (
        lambda c: in_start(c, "worker", "2>&1 &)", "2>&1)"),
        "nobody watches for spot notices",
    ),
    "the whole checkout": (
        lambda c: c["file_mounts"].update({"~/nanoray": "."}),
        "something else than the code is sent, or not all of it",
    ),
    "a wrong label": (
        lambda c: types(c)[1]["h100"]["labels"].update({"ray.io/market-type": "on-demand"}),
        "h100 is not labelled spot",
    ),
    "the launcher's own pip install": (
        lambda c: c["head_setup_commands"].append("pip install 'boto3>=1.4.8'"),
        "software is installed beside the lock file",
    ),
    "nodes that never leave": (
        lambda c: c.update(idle_timeout_minutes=600),
        "idle nodes stay too long, or not long enough for the next stage",
    ),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_planted_mistake_is_found(name: str, mutation: str):
    change, expected = MUTATIONS[mutation]
    config = load(name)
    change(config)

    found = problems(config)

    assert expected in found


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("ubuntu-accelerator-2404-amd64-with-nvidia-570", "h100 has a driver older than 580"),
        ("ubuntu-2404-lts-amd64", "the image of h100 names no driver"),
    ],
)
def test_an_image_whose_driver_is_too_old_for_the_locked_torch_is_found(image: str, expected: str):
    config = load("deploy/gcp.yaml")
    disk = types(config)[1]["h100"]["node_config"]["disks"][0]["initializeParams"]
    family = f"projects/ubuntu-os-accelerator-images/global/images/family/{image}"

    disk["sourceImage"] = family

    found = problems(config)

    assert found == [expected]


def test_the_documents_name_the_driver_that_the_locked_torch_needs():
    sections = (ROOT / "docs" / "clusters.md").read_text().split("\n## ")
    marked = [each for each in sections if "(needs " in each.splitlines()[0]]

    assert len(marked) == 4
    assert [
        each.splitlines()[0] for each in marked if f"{least_driver()} or later" not in each
    ] == []
    assert f"driver {least_driver()} or later" in (ROOT / "cluster.yaml").read_text()


@pytest.mark.parametrize("kind", [None, "pd-standard", "local-ssd"])
def test_a_disk_that_a3_does_not_take_is_found(kind: str | None):
    config = load("deploy/gcp.yaml")
    disk = types(config)[1]["h100"]["node_config"]["disks"][0]["initializeParams"]
    disk.pop("diskType", None)
    if kind is not None:
        disk["diskType"] = f"zones/us-central1-a/diskTypes/{kind}"

    assert problems(config) == ["h100 has a disk of no type that A3 takes in us-central1-a"]


@pytest.mark.parametrize("name", FILES)
def test_a_head_on_spot_is_found(name: str):
    config = load(name)
    head, workers = types(config)
    for key in ("InstanceMarketOptions", "scheduling"):
        if key in workers["h100"]["node_config"]:
            head["node_config"][key] = workers["h100"]["node_config"][key]

    assert "the head is on spot" in problems(config)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("idle_timeout",), 10),
        (("available_node_types", "h100", "spot"), True),
        (("available_node_types", "h100", "resources", "GPU"), 7.5),
        (("head_node_type",), "driver"),
        (("auth", "ssh_key"), "key.pem"),
    ],
)
def test_what_ray_does_not_know_is_refused(name: str, path: tuple[str, ...], value: object):
    config = load(name)
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    assert problems(config)[0].startswith("Ray refuses it")


def test_both_clouds_start_the_same_head():
    aws, google = (load(name) for name in FILES)

    for same in ("head_start_ray_commands", "setup_commands", "file_mounts", "rsync_exclude"):
        assert aws[same] == google[same]


@pytest.fixture
def simulated_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Simulate an account; gives cluster.yaml with the account's own subnets, group and image."""
    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher writes SSH keys there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "simulated")
    with mock_aws():
        region = load("cluster.yaml")["provider"]["region"]
        ec2, iam = boto3.resource("ec2", region), boto3.client("iam", region)
        iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument="{}")
        iam.create_instance_profile(InstanceProfileName=ROLE)
        iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16").id
        public, private = (
            ec2.create_subnet(
                VpcId=vpc, CidrBlock=f"10.0.{part}.0/24", AvailabilityZone=f"{region}{zone}"
            ).id
            for part, zone in enumerate("bc")
        )
        group = ec2.create_security_group(GroupName="g", Description="g", VpcId=vpc).id
        text = (ROOT / "cluster.yaml").read_text()
        own = {"subnet-" + 17 * "0": public, "subnet-" + 16 * "0" + "1": private}
        own |= {"sg-" + 17 * "0": group, "ami-" + 17 * "0": next(iter(ec2.images.limit(1))).id}
        for placeholder, value in own.items():
            assert placeholder in text
            text = text.replace(placeholder, value)
        yield yaml.safe_load(text)


def test_the_launcher_starts_head_and_workers_on_a_simulated_aws(simulated_aws: Config):
    config = bootstrap_aws(prepare_config(simulated_aws))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])

    for name in ("head", "h100"):
        node = copy.deepcopy(config["available_node_types"][name]["node_config"])
        provider.create_node(node, {"ray-node-name": name}, 1)

    instances = boto3.resource("ec2", config["provider"]["region"]).instances.all()
    by_type = {each.instance_type: each for each in instances}
    head, worker = by_type["m6i.2xlarge"], by_type["p5.48xlarge"]
    assert (head.instance_lifecycle, worker.instance_lifecycle) == (None, "spot")
    assert head.subnet_id == simulated_aws["metadata"]["head_subnet"]
    assert worker.subnet_id == simulated_aws["metadata"]["worker_subnet"]
    assert "IamInstanceProfile" not in config["available_node_types"]["h100"]["node_config"]


def test_workers_have_one_fast_interface_per_network_card():
    interfaces = types(load("cluster.yaml"))[1]["h100"]["node_config"]["NetworkInterfaces"]

    cards = [each["NetworkCardIndex"] for each in interfaces]
    devices = [each["DeviceIndex"] for each in interfaces]
    kinds = [each["InterfaceType"] for each in interfaces]

    assert cards == list(range(32))
    assert devices == [0] + [1] * 31
    assert kinds == ["efa"] + ["efa-only"] * 31
