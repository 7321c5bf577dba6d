"""How the workers of a group meet: on the network by which Ray's nodes know each other.

Left to itself, gloo binds to the address that the host's name has. On Debian and in many images
that is 127.0.0.1 or 127.0.1.1, at which no other host can be reached.
"""

import functools
import logging
import os
import socket
from typing import Any

import psutil
import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig, config
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is not in __all__

from nanoray.cluster.loopback import LOOPBACK, is_on_loopback

logger = logging.getLogger(__name__)

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"


def interface_of(address: str) -> str | None:
    """Name the network interface that has an address; None where none has it, as behind NAT."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return None


def choose_interface() -> None:
    """Let gloo in this process use the interface of its node's address, unless one is set.

    NCCL chooses well by itself, but never the loopback.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)
        if is_on_loopback():
            os.environ.setdefault(NCCL_INTERFACE, name)


def choose_meeting_place() -> tuple[str, int]:
    """Give address and port at which the ranks meet, on the node of the first one, which calls it.

    On a machine by itself the store listens from here on; elsewhere torch opens it.
    """
    return open_store() if is_on_loopback() else get_address_and_port()


def open_store() -> tuple[str, int]:
    """Open the store at which torch's ranks meet; left to itself, torch listens on all addresses.

    Returns:
        Address and port. Who makes a store of several tenants there, in this process, shares it.
    """
    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    _keep_store(port, listener.detach())
    return LOOPBACK, port


@functools.lru_cache(maxsize=1)  # torch itself forgets a store that nobody holds
def _keep_store(port: int, listener: int) -> TCPStore:
    return TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener,
    )


class NodeNetworkBackend(_TorchBackend):
    """Sets up torch's process group on the nodes' own network."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # Any: Ray's, handed on
        """Choose the interface in every worker, and let them look for each other.

        Raises:
            WorkerGroupStartupFailedError: one did not find the others. Ray Train starts the group
                again after this error; after the worker's own it would end the run, and a host can
                be lost at this moment as at any other.
        """
        ours: Any = config  # Any: not public
        ours.get_address_and_port = choose_meeting_place  # what `super` has the first rank call
        try:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", error)).strip().partition("\n")[0]
            logger.warning("the workers did not find each other: %s", reason)
            # Ray forgets this group, and the next one would ask for its resources once more.
            worker_group._worker_group_state.shutdown()
            raise WorkerGroupStartupFailedError(reason) from error


class NodeNetworkConfig(TorchConfig):
    """Ray Train's settings of torch, with that network."""

    @property
    def backend_cls(self) -> type[NodeNetworkBackend]:
        """Give what Ray Train sets workers up with."""
        return NodeNetworkBackend
