"""The manifests of deploy/kuberay/: by the schemas of their kinds, and by what must be in them."""

import copy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import nanoray
from nanoray.serve.serve_config import KEYS_VARIABLE, ServeConfig
from tests.deploy.kuberay_kinds import Document, problem

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"
FILES = sorted(file.name for file in FOLDER.glob("*.yaml"))
STAGES = ("pretrain", "midtrain", "sft", "rl", "evaluate")
SECRETS = {"nanoray-ray-token", "nanoray-redis", "nanoray-api-keys"}


def load(name: str) -> list[Document]:
    """Read all objects of a file."""
    return [each for each in yaml.safe_load_all((FOLDER / name).read_text()) if each]


def cluster_of(document: Document) -> Document | None:
    """Give the cluster that an object describes, if it does."""
    spec: Document = document["spec"]
    if document["kind"] == "RayCluster":
        return spec
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig")


def pods_of(document: Document) -> Iterator[Document]:
    """Give the spec of each pod that comes of an object."""
    cluster = cluster_of(document)
    if cluster:
        yield cluster["headGroupSpec"]["template"]["spec"]
        for group in cluster["workerGroupSpecs"]:
            yield group["template"]["spec"]
    for key in ("template", "submitterPodTemplate"):
        if key in document["spec"]:
            yield document["spec"][key]["spec"]


def container_problems(pod: Document) -> list[str]:
    """Check that each container is no root, bounded, and not given a secret as text."""
    found = []
    for container in pod["containers"]:
        name, context = container["name"], container.get("securityContext", {})
        if not context.get("runAsNonRoot") or not context.get("runAsUser"):
            found.append(f"{name} may run as root")
        if context.get("allowPrivilegeEscalation", True) or context.get("privileged"):
            found.append(f"{name} may become root")
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            found.append(f"{name} keeps capabilities")
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            found.append(f"{name} has no filter of system calls")
        found += [
            f"{name} has no {bound}"
            for bound in ("requests", "limits")
            if not {"cpu", "memory"} <= set(container.get("resources", {}).get(bound, {}))
        ]
        found += [
            f"{name} is given {variable['name']} as text"
            for variable in container.get("env", [])
            if any(word in variable["name"] for word in ("KEY", "TOKEN", "PASSWORD", "SECRET"))
            and "secretKeyRef" not in variable.get("valueFrom", {})
        ]
    return found


def mount_problems(pod: Document) -> list[str]:
    """Check that a node of Ray has room in /dev/shm, and sees the runs."""
    mounts = {m["mountPath"]: m["name"] for m in pod["containers"][0].get("volumeMounts", [])}
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    found = []
    shm = volumes.get(mounts.get("/dev/shm", ""), {}).get("emptyDir", {})
    if shm.get("medium") != "Memory" or "sizeLimit" not in shm:
        found.append("a node has no room in /dev/shm")
    runs = volumes.get(mounts.get("/home/nanoray/nanoray/runs", ""), {})
    if runs.get("persistentVolumeClaim") != {"claimName": "nanoray-runs"}:
        found.append("a node does not see the runs")
    return found


def shared_memory_bytes(pod: Document) -> int:
    """Give the size of the largest volume in memory."""
    limits = [v["emptyDir"].get("sizeLimit", "0Gi") for v in pod["volumes"] if v.get("emptyDir")]
    return max((int(limit.removesuffix("Gi")) for limit in limits), default=0) * 2**30


def cluster_problems(cluster: Document) -> list[str]:
    """Check a cluster: token, head, nodes."""
    head = cluster["headGroupSpec"]
    found = []
    if cluster.get("authOptions") != {"mode": "token", "secretName": "nanoray-ray-token"}:
        found.append("a cluster without token authentication")
    if not {"num-cpus", "num-gpus"} <= {k for k, v in head["rayStartParams"].items() if v == "0"}:
        found.append("tasks can be scheduled on the head")
    if "nvidia.com/gpu" in head["template"]["spec"]["containers"][0]["resources"].get("limits", {}):
        found.append("the head takes a GPU")
    if "spot" not in str(head["template"]["spec"].get("affinity")):
        found.append("the head may be put on spot")
    if head.get("labels") != {"ray.io/market-type": "on-demand"}:
        found.append("the head is not labelled")
    for group in cluster["workerGroupSpecs"]:
        labels = group.get("labels", {})
        if "ray.io/market-type" not in labels:
            found.append("a node is not labelled")
        if labels.get("ray.io/node-group") != group["groupName"]:
            found.append("the autoscaler does not know a node's group")
    for pod in (head, *cluster["workerGroupSpecs"]):
        store = int(pod["rayStartParams"].get("object-store-memory", 2**60))
        if store > shared_memory_bytes(pod["template"]["spec"]):
            found.append("Ray's object store does not fit /dev/shm")
        found += mount_problems(pod["template"]["spec"])
    return found


def problems(document: Document) -> list[str]:
    """List what is wrong with an object; an empty list means nothing is."""
    wrong = problem(document)
    if wrong:
        return [wrong]
    found = [each for pod in pods_of(document) for each in container_problems(pod)]
    cluster = cluster_of(document)
    return found + (cluster_problems(cluster) if cluster else [])


@pytest.mark.parametrize("name", FILES)
def test_a_manifest_has_no_problem(name: str):
    assert {each["metadata"]["name"]: problems(each) for each in load(name)} == {
        each["metadata"]["name"]: [] for each in load(name)
    }


def head_of(cluster: Document) -> Document:
    """Give the head's container."""
    container: Document = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    return container


MUTATIONS: dict[str, tuple[Callable[[Document], object], str]] = {
    "no token": (
        lambda c: c["authOptions"].update(mode="disabled"),
        "a cluster without token authentication",
    ),
    "CPUs on the head": (
        lambda c: c["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "tasks can be scheduled on the head",
    ),
    "root": (
        lambda c: head_of(c)["securityContext"].pop("runAsUser"),
        "ray-head may run as root",
    ),
    "privileges": (
        lambda c: head_of(c)["securityContext"].update(allowPrivilegeEscalation=True),
        "ray-head may become root",
    ),
    "no limits": (
        lambda c: head_of(c)["resources"].pop("limits"),
        "ray-head has no limits",
    ),
    "a head whose object store is Ray's choice": (
        lambda c: c["headGroupSpec"]["rayStartParams"].pop("object-store-memory"),
        "Ray's object store does not fit /dev/shm",
    ),
    "a small /dev/shm": (
        lambda c: c["workerGroupSpecs"][0]["template"]["spec"]["volumes"][1].update(emptyDir={}),
        "a node has no room in /dev/shm",
    ),
    "no storage": (
        lambda c: c["workerGroupSpecs"][0]["template"]["spec"]["volumes"][0].update(
            persistentVolumeClaim={"claimName": "other"}
        ),
        "a node does not see the runs",
    ),
    "a literal key": (
        lambda c: head_of(c)["env"].append({"name": KEYS_VARIABLE, "value": "first-key"}),
        f"ray-head is given {KEYS_VARIABLE} as text",
    ),
    "a literal password": (
        lambda c: c["gcsFaultToleranceOptions"].update(redisPassword={"value": "secret"}),
        "spec.gcsFaultToleranceOptions.redisPassword.valueFrom: Field required",
    ),
    "a field of no kind": (
        lambda c: c["headGroupSpec"].update(replicas=1),
        "spec.headGroupSpec.replicas: Extra inputs are not permitted",
    ),
    "a number where a string belongs": (
        lambda c: c["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "spec.headGroupSpec.rayStartParams.num-cpus: Input should be a valid string",
    ),
    "a dashboard for everyone": (
        lambda c: c["headGroupSpec"].update(serviceType="LoadBalancer"),
        "spec.headGroupSpec.serviceType: Input should be 'ClusterIP'",
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_planted_mistake_is_found(mutation: str):
    change, expected = MUTATIONS[mutation]
    (document,) = copy.deepcopy(load("cluster.yaml"))
    change(document["spec"])

    found = problems(document)

    assert expected in found


def test_what_kubernetes_does_not_know_is_found_in_a_pod():
    (document,) = load("cluster.yaml")
    head_of(document["spec"])["volumeMount"] = []

    assert "volumeMount" in problems(document)[0]


def test_a_job_ends_no_cluster_that_it_only_selects():
    (document,) = load("pretrain.yaml")
    document["spec"]["shutdownAfterJobFinishes"] = True

    assert "cannot end" in problems(document)[0]


@pytest.mark.parametrize("name", FILES)
def test_secrets_are_named_and_never_written(name: str):
    documents = load(name)

    named = {
        part["secretKeyRef"]["name"]
        for document in documents
        for part in sections(document)
        if "secretKeyRef" in part
    }

    assert "Secret" not in {document["kind"] for document in documents}
    assert named <= SECRETS


def sections(part: Any) -> Iterator[Document]:  # Any: YAML
    """Give every mapping in an object."""
    if isinstance(part, dict):
        yield part
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for value in values:
        yield from sections(value)


def test_each_stage_has_its_job():
    jobs = {name: load(f"{name}.yaml")[0]["spec"] for name in (*STAGES, "pipeline")}

    for name, spec in jobs.items():
        python, job, *_ = shlex.split(spec["entrypoint"])
        assert (python, job) == ("python", f"jobs/{name}.py")
        assert (ROOT / job).exists()
    assert {str(jobs[stage]["clusterSelector"]) for stage in STAGES} == {
        "{'ray.io/cluster': 'nanoray'}"
    }


def test_idle_workers_leave_and_jobs_with_their_own_cluster_end_it():
    (cluster,) = load("cluster.yaml")
    (pipeline,) = load("pipeline.yaml")

    for each in (cluster["spec"], pipeline["spec"]["rayClusterSpec"]):
        assert [group["minReplicas"] for group in each["workerGroupSpecs"]] == [0]
        assert each["enableInTreeAutoscaling"]
    assert pipeline["spec"]["shutdownAfterJobFinishes"]


def test_the_pipeline_gets_the_same_nodes_as_the_standing_cluster():
    (standing,) = load("cluster.yaml")
    (pipeline,) = load("pipeline.yaml")

    own = pipeline["spec"]["rayClusterSpec"]
    fault_tolerance = standing["spec"].pop("gcsFaultToleranceOptions")

    assert own == standing["spec"]
    assert fault_tolerance["redisAddress"] == "nanoray-redis:6379"


def test_the_chat_is_served_with_keys_by_settings_that_exist():
    (service,) = load("chat.yaml")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]

    keys = [
        [variable for variable in container["env"] if variable["name"] == KEYS_VARIABLE]
        for pod in pods_of(service)
        for container in pod["containers"]
    ]

    assert application["import_path"] == "serve_app:app"
    assert set(application["args"]) <= set(ServeConfig.__dataclass_fields__)
    assert application["args"]["host"] == "0.0.0.0"  # without keys this is refused
    assert [len(each) for each in keys] == [1, 1]


@pytest.mark.parametrize("name", FILES)
def test_every_ray_container_has_the_image_of_this_version(name: str):
    images = {
        container["image"]
        for document in load(name)
        for pod in pods_of(document)
        for container in pod["containers"]
    }

    assert images <= {f"nanoray:{nanoray.__version__}", "redis:7.4"}
