"""What an autoscaler may add, read from the file that it was started with."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from nanoray.cluster.autoscaler import VARIABLE, config_file, nodes_at_most, possible_nodes
from nanoray.cluster.devices import gpu_of

ROOT = Path(__file__).parents[2]
ADDRESS = "192.0.2.7:6379"


@pytest.fixture
def autoscaler(tmp_path: Path) -> Iterator[Path]:
    """Start a process that has the arguments of Ray's, and give its file."""
    file = tmp_path / "autoscaling.yaml"
    program = tmp_path / "ray/autoscaler/v2/monitor.py"
    program.parent.mkdir(parents=True)
    program.write_text("print(flush=True)\nimport time\ntime.sleep(600)\n")
    command = [sys.executable, "-u", str(program), f"--gcs-address={ADDRESS}"]
    process = subprocess.Popen(
        [*command, f"--autoscaling-config={file}", "--monitor-ip=192.0.2.7"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield file
    process.kill()
    process.communicate()


def test_a_head_without_cpus_counts_with_what_its_autoscaler_may_add(autoscaler: Path) -> None:
    resources = {"CPU": 192, "GPU": 8, "accelerator_type:H100": 1}
    kind = {"resources": resources, "max_workers": 4}
    kinds = {"head": {"resources": {"CPU": 0}, "max_workers": 0}, "h100": kind}
    config = {"max_workers": 4, "head_node_type": "head", "available_node_types": kinds}
    autoscaler.write_text(yaml.safe_dump(config))

    nodes = possible_nodes(ADDRESS)

    assert nodes == [{"CPU": 0.0, "GPU": 0.0}] + [resources] * 4


def test_a_file_that_is_no_longer_there_says_nothing(autoscaler: Path) -> None:
    assert possible_nodes(ADDRESS) == []


def test_the_autoscaler_of_another_cluster_says_nothing_of_this_one(autoscaler: Path) -> None:
    autoscaler.write_text(yaml.safe_dump({"available_node_types": {}}))

    assert possible_nodes("192.0.2.8:6379") == []
    assert (
        config_file(ADDRESS, [["ray/autoscaler/v2/monitor.py", f"--gcs-address={ADDRESS}"]]) is None
    )


def test_all_kinds_together_are_no_more_than_the_cluster_may_have() -> None:
    kinds = {
        "small": {"resources": {"CPU": 16}, "max_workers": 10},
        "large": {"resources": {"CPU": 192, "GPU": 8}, "max_workers": 2},
        "any number": {"resources": {"CPU": 8}},
    }

    nodes = nodes_at_most({"max_workers": 5, "available_node_types": kinds})

    assert [node["CPU"] for node in nodes] == [192, 192, 16, 16, 16]


@pytest.mark.parametrize("name", ["cluster.yaml", "deploy/gcp.yaml"])
def test_our_own_files_say_what_may_come(name: str) -> None:
    nodes = nodes_at_most(yaml.safe_load((ROOT / name).read_text()))

    assert sum(node["GPU"] for node in nodes) == 32
    assert nodes[0] == {"CPU": 0.0, "GPU": 0.0}
    assert {gpu_of(node) for node in nodes[1:]} == {"h100"}


@pytest.mark.parametrize("name", ["cluster.yaml", "pipeline.yaml"])
def test_on_kubernetes_the_heads_environment_says_what_its_groups_may_have(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kuberay" / name).read_text())
    specs = [d["spec"].get("rayClusterSpec", d["spec"]) for d in documents if d]
    [spec] = [spec for spec in specs if "headGroupSpec" in spec]
    [head] = spec["headGroupSpec"]["template"]["spec"]["containers"]
    [told] = [each["value"] for each in head["env"] if each["name"] == VARIABLE]
    [group] = spec["workerGroupSpecs"]
    asked = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    monkeypatch.setenv(VARIABLE, told)

    nodes = possible_nodes(ADDRESS)

    gpus = float(asked["nvidia.com/gpu"])
    each = {"CPU": float(asked["cpu"]), "GPU": gpus, "accelerator_type:H100": 1.0}
    assert nodes == [each] * group["maxReplicas"]
