"""What the autoscaler of a cluster may add to it, which Ray itself does not tell.

`ray start --head --autoscaling-config FILE` starts a process on the head that has the file among
its arguments, and drivers run on the head too. (Ray has a place for a cluster's maximum in its own
state; nothing in the open-source release writes it.) Where the autoscaler runs elsewhere, as on
Kubernetes, the head's environment says the same: see `VARIABLE`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

VARIABLE = "NANORAY_AUTOSCALING"
"""`max_workers` and `available_node_types` as in an autoscaler's file, as JSON or YAML."""
PROCESS = "autoscaler/v2/monitor.py"
OLDER_PROCESS = "autoscaler/_private/monitor.py"
FILE_ARGUMENT = "--autoscaling-config="
ADDRESS_ARGUMENT = "--gcs-address="


def possible_nodes(gcs_address: str) -> list[dict[str, float]]:
    """List the resources of each node that a cluster has at its autoscaler's maximum.

    Args:
        gcs_address: of the cluster, HOST:PORT.

    Returns:
        One entry per node, the head's among them, with CPU and GPU in each; empty where nothing is
        known of an autoscaler.
    """
    told = os.environ.get(VARIABLE)
    if told:
        return nodes_at_most(yaml.safe_load(told))
    file = config_file(gcs_address, command_lines())
    if file is None:
        return []
    try:
        return nodes_at_most(yaml.safe_load(file.expanduser().read_text()))
    except OSError:  # it was there when the head started
        return []


def command_lines() -> Iterable[list[str]]:
    """Give the command line of each process of this machine that can be seen."""
    for process in psutil.process_iter(["cmdline"]):
        yield process.info["cmdline"] or []


def config_file(gcs_address: str, commands: Iterable[list[str]]) -> Path | None:
    """Find the autoscaler of a cluster among command lines, and give its file."""
    for words in commands:
        if any(word.endswith((PROCESS, OLDER_PROCESS)) for word in words):
            given = dict(word.split("=", 1) for word in words if "=" in word)
            file = given.get(FILE_ARGUMENT[:-1])
            if file and given.get(ADDRESS_ARGUMENT[:-1]) == gcs_address:
                return Path(file)
    return None


def nodes_at_most(config: dict[str, Any]) -> list[dict[str, float]]:  # Any: YAML
    """List the nodes of an autoscaler's config at its maximum, those with most GPUs first.

    `max_workers` of all kinds together bounds what the kinds may have each.
    """
    head = config.get("head_node_type")
    left = int(config.get("max_workers") or 0)
    kinds = config.get("available_node_types") or {}
    sizes = {
        name: {"CPU": 0.0, "GPU": 0.0}
        | {unit: float(amount) for unit, amount in kind.get("resources", {}).items()}
        for name, kind in kinds.items()
    }
    nodes = [sizes[head]] if head in sizes else []
    for name in sorted(kinds, key=lambda n: (sizes[n]["GPU"], sizes[n]["CPU"]), reverse=True):
        if name != head:
            count = min(left, int(kinds[name].get("max_workers", left)))
            nodes += [sizes[name]] * count
            left -= count
    return nodes
