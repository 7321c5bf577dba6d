"""A Ray of this machine alone: none of its processes listens for other machines."""

import contextlib
import os
import socket
from collections.abc import Iterator

import ray
from ray._private import ray_constants, services

LOOPBACK = "127.0.0.1"
SECONDS = 5
"""For an answer of this machine at its own address; a firewall may give none."""


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Let a node that is started, or joined, meanwhile be at 127.0.0.1, where it then listens.

    Given as an argument, Ray replaces that address by one of the network, and listens on all. It
    keeps it where it knows no clusters of several machines, as by itself on macOS and Windows.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def answers_only_here(address: str) -> bool:
    """Say whether a cluster at 127.0.0.1:PORT is not to be found where Ray would look for it."""
    host, _, port = address.rpartition(":")
    if host != LOOPBACK:
        return False
    try:
        socket.create_connection((services.get_node_ip_address(), int(port)), SECONDS).close()
    except OSError:
        return True
    return False


def environment_to_reach(address: str) -> dict[str, str]:
    """Give the environment in which a command of Ray's finds a cluster, also one at 127.0.0.1."""
    is_here = address.rpartition(":")[0] == LOOPBACK
    return {**os.environ, **({ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"} if is_here else {})}


def is_on_loopback() -> bool:
    """Say whether the node of this process is one that nobody else reaches."""
    address: str = ray.util.get_node_ip_address()
    return address == LOOPBACK
