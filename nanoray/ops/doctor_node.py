"""What one node of the cluster tells of itself: versions, disks, memory, GPUs."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import nanoray
from nanoray.ops.doctor_gpu import GpuReport, ask_smi
from nanoray.ops.doctor_links import NodeLinks, own_links

NO_NCCL = "none"
"""The version of NCCL where torch was built for CPUs."""


@dataclass(frozen=True)
class Node:
    """A living node, as Ray lists it."""

    id: str
    name: str
    """For people: its host, and a piece of the id where several nodes are on one host."""
    host: str
    num_cpus: float
    num_gpus: int
    object_store_bytes: float
    temp_folder: str
    """Where Ray keeps its sessions: logs, sockets, objects that did not fit into memory."""

    @property
    def trains(self) -> bool:
        """Say whether workers can be put here."""
        return self.num_cpus >= 1 or self.num_gpus >= 1


@dataclass(frozen=True)
class Space:
    """Room of a filesystem, in bytes."""

    total: int
    free: int


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself."""

    versions: dict[str, str]
    """Of ray, python, torch, nanoray, its code, and NCCL where there are GPUs."""
    temp: Space
    """Of Ray's folder."""
    shared_memory: Space | None
    """None where there is no /dev/shm."""
    memory_bytes: int
    """Free for new processes."""
    gpus: GpuReport = field(default_factory=GpuReport)
    links: NodeLinks = field(default_factory=NodeLinks)
    """To other nodes."""


def describe_node(node: Node) -> NodeFacts:
    """Describe the node on which this runs."""
    return NodeFacts(
        versions=own_versions(with_nccl=node.num_gpus > 0),
        temp=space_of(node.temp_folder),
        shared_memory=space_of("/dev/shm") if os.path.isdir("/dev/shm") else None,
        memory_bytes=psutil.virtual_memory().available,
        gpus=ask_smi() if node.num_gpus else GpuReport(),
        links=own_links(),
    )


def own_versions(*, with_nccl: bool) -> dict[str, str]:
    """Give the versions of all that must be the same on every node."""
    versions = {
        "Ray": importlib.metadata.version("ray"),
        "Python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "nanoray": nanoray.__version__,
        "nanoray's code": code_hash(),
    }
    if with_nccl:
        versions["NCCL"] = nccl_version()
    return versions


def nccl_version() -> str:
    """Give the version of NCCL that torch brings."""
    import torch  # a node without GPUs is described faster without it

    if not torch.distributed.is_nccl_available():
        return NO_NCCL
    return ".".join(map(str, torch.cuda.nccl.version()))


@functools.cache
def code_hash() -> str:
    """Hash the source of nanoray: a checkout can differ without another version."""
    digest = hashlib.sha256()
    root = Path(nanoray.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def space_of(path: str) -> Space:
    """Give the room of the filesystem of a path, which need not exist yet."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free)
