"""What a file for Ray's cluster launcher must be, beyond what Ray's own schema asks."""

import re
from pathlib import Path
from typing import Any

import jsonschema
from ray._private.label_utils import validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config

from nanoray.ops.local_cluster import HEALTH_CHECKS

Config = dict[str, Any]  # Any: YAML

TOKEN = "~/.ray/auth_token"
LOOPBACK = "127.0.0.1"
LOCK = Path(__file__).parents[2] / "deploy" / "requirements.lock"
LEAST_DRIVER = {12: 525, 13: 580}
"""NVIDIA's least driver for each CUDA (its page on minor version compatibility)."""
DISKS = ("pd-balanced", "pd-ssd")
"""Kinds of persistent disk that A3 takes (Google's page of its machine types)."""


def problems(config: Config) -> list[str]:
    """List what is wrong with a launcher's file; an empty list means nothing is."""
    try:
        validate_config(prepare_config(config))
    except (jsonschema.ValidationError, ValueError, RuntimeError, KeyError) as error:
        return [f"Ray refuses it: {str(error).splitlines()[0]}"]
    return [
        *head_problems(config),
        *worker_problems(config),
        *disk_problems(config),
        *driver_problems(config),
        *start_problems(config),
        *notice_problems(config),
        *upload_problems(config),
    ]


def types(config: Config) -> tuple[Config, dict[str, Config]]:
    """Give the head's node type, and those of the workers by name."""
    all_types: dict[str, Config] = config["available_node_types"]
    workers = {name: each for name, each in all_types.items() if name != config["head_node_type"]}
    return all_types[config["head_node_type"]], workers


def is_spot(node_type: Config) -> bool:
    """Say whether a node type is bought on the spot market, on AWS or on Google Cloud."""
    node = node_type["node_config"]
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    scheduling = node.get("scheduling", {})
    return aws or scheduling.get("provisioningModel") == "SPOT" or "preemptible" in scheduling


def head_problems(config: Config) -> list[str]:
    """Check that the head stays, and that nothing but drivers runs on it."""
    head, _ = types(config)
    found = []
    if head["resources"].get("CPU") != 0 or head["resources"].get("GPU") != 0:
        found.append("tasks can be scheduled on the head")
    if is_spot(head):
        found.append("the head is on spot")
    return [*found, *label_problems("the head", head)]


def label_problems(name: str, node_type: Config) -> list[str]:
    """Check that a node tells on which market it was bought."""
    labels = node_type.get("labels", {})
    validate_node_label_syntax(labels)
    market = "spot" if is_spot(node_type) else "on-demand"
    return (
        [] if labels.get("ray.io/market-type") == market else [f"{name} is not labelled {market}"]
    )


def worker_problems(config: Config) -> list[str]:
    """Check that workers cost nothing while there is no work."""
    found = []
    for name, each in types(config)[1].items():
        if each.get("min_workers", 0) != 0:
            found.append(f"{name} stays on without work")
        if each["resources"].get("GPU") != 8:
            found.append(f"{name} has not 8 GPUs")
        found += label_problems(name, each)
    if not 1 <= config["idle_timeout_minutes"] <= 30:
        found.append("idle nodes stay too long, or not long enough for the next stage")
    return found


def disk_problems(config: Config) -> list[str]:
    """Check that a disk on Google Cloud is of a type that A3 takes, in the zone of the nodes.

    Without a type Compute makes a pd-standard, which A3 refuses.
    """
    if config["provider"]["type"] != "gcp":
        return []
    zone = config["provider"]["availability_zone"]
    return [
        f"{name} has a disk of no type that A3 takes in {zone}"
        for name, each in config["available_node_types"].items()
        for disk in each["node_config"]["disks"]
        if disk["initializeParams"].get("diskType")
        not in {f"zones/{zone}/diskTypes/{kind}" for kind in DISKS}
    ]


def least_driver() -> int:
    """Give the least driver for the CUDA with which the locked torch was built."""
    (cuda,) = re.findall(r"^cuda-toolkit==(\d+)\.", LOCK.read_text(), re.MULTILINE)
    return LEAST_DRIVER[int(cuda)]


def driver_problems(config: Config) -> list[str]:
    """Check that an image whose name tells its driver has one that the locked torch takes.

    Google's families are named so; an AMI is a number, and its driver is left to its reader.
    """
    found = []
    for name, each in config["available_node_types"].items():
        drivers = re.findall(r"nvidia-(\d+)", str(each["node_config"]))
        if config["provider"]["type"] == "gcp" and not drivers:
            found.append(f"the image of {name} names no driver")
        if any(int(driver) < least_driver() for driver in drivers):
            found.append(f"{name} has a driver older than {least_driver()}")
    return found


def start_problems(config: Config) -> list[str]:
    """Check the commands that start Ray: token, folder, addresses, health checks."""
    found = []
    heads, workers = (
        [command for command in config[f"{kind}_start_ray_commands"] if "ray start" in command]
        for kind in ("head", "worker")
    )
    if len(heads) != 1 or len(workers) != 1:
        return ["Ray is not started once on each node"]
    for command in (*heads, *workers):
        before, options = command.split("ray start", 1)
        if not re.search(r"export [^&]*\bRAY_AUTH_MODE=token\b", before):
            found.append("Ray is started without token authentication")
        if not before.startswith("cd ~/nanoray && "):
            found.append("Ray is not started from the project's folder")
        if "node_environment.sh &&" not in before:
            found.append("Ray is started without the project's environment")
        if "--object-store-memory=" not in options:
            found.append("Ray chooses the size of its object store")
    before, options = heads[0].split("ray start", 1)
    if f"--dashboard-host={LOOPBACK} " not in options:
        found.append("the dashboard listens beyond the head")
    if "--num-cpus=0 " not in options or "--num-gpus=0 " not in options:
        found.append("the head is started with CPUs or GPUs")
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in options:
        found.append("nothing starts workers")
    words = before.split()
    if not all(f"{setting}={value}" in words for setting, value in HEALTH_CHECKS.items()):
        found.append("a dead node is noticed late")
    return found


def notice_problems(config: Config) -> list[str]:
    """Check that spot workers hand their cloud's notices to Ray, which has to run by then."""
    commands: list[str] = config["worker_start_ray_commands"]
    if not any(is_spot(each) for each in types(config)[1].values()):
        return []
    cloud = config["provider"]["type"]
    # The launcher's terminal hangs up as soon as the command has ended.
    job = rf"python jobs/spot_notice\.py --cloud {cloud} </dev/null >\S+ 2>&1 &\)$"
    begin = "cd ~/nanoray && source deploy/node_environment.sh && export RAY_AUTH_MODE=token && "
    starts = [at for at, command in enumerate(commands) if "ray start" in command]
    watches = [
        at
        for at, command in enumerate(commands)
        if command.startswith(begin + '(trap "" HUP; setsid ') and re.search(job, command)
    ]
    return [] if watches and watches[0] > starts[0] else ["nobody watches for spot notices"]


def upload_problems(config: Config) -> list[str]:
    """Check that the token is sent, the code, and nothing else."""
    mounts = config["file_mounts"]
    code = {f"~/nanoray/{name}" for name in ("nanoray", "evals", "jobs", "deploy", "serve_app.py")}
    found = []
    if mounts.get(TOKEN) != TOKEN:
        found.append("the token is not sent")
    if set(mounts) != {TOKEN, *code}:
        found.append("something else than the code is sent, or not all of it")
    if config["head_setup_commands"] or config["worker_setup_commands"]:
        found.append("software is installed beside the lock file")
    if not any("deploy/node_setup.sh" in command for command in config["setup_commands"]):
        found.append("nodes are not set up")
    return found
