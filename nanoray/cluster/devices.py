"""What kinds of devices the nodes of the cluster have, as Ray and its autoscaler name them."""

from collections.abc import Mapping

import ray

from nanoray.cluster import connection

CPU, UNKNOWN_GPU = "cpu", "gpu"
"""Kinds of devices; others are GPUs as Ray knows them, such as "h100"."""
ACCELERATOR = "accelerator_type:"
"""Ray puts it before the kind of a node's GPUs, among its resources."""


def device_kind() -> str:
    """Name what workers train on, or will when the autoscaler has brought the first nodes."""
    if connection.cluster_total()["GPU"] < 1:
        return CPU
    kinds = [
        gpu_of(resources) for resources in (ray.cluster_resources(), *connection.nodes_to_come())
    ]
    return next((kind for kind in kinds if kind != UNKNOWN_GPU), UNKNOWN_GPU)


def gpus_of(nodes: list[str]) -> list[str]:
    """Name the kind of the GPUs of each node, by Ray's ids."""
    found = {node["NodeID"]: gpu_of(node["Resources"]) for node in ray.nodes()}
    return [found.get(node, UNKNOWN_GPU) for node in nodes]


def gpu_of(resources: Mapping[str, float]) -> str:
    """Name the kind of a node's GPUs by its resources."""
    kinds = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    return kinds[0].lower() if kinds else UNKNOWN_GPU
