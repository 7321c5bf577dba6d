"""Where a replica of Serve listens for the others: on a machine by itself, on the loopback."""

from typing import Any

import ray
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica

from nanoray.serve.serve_config import is_loopback


def listen_as_its_node() -> None:
    """Let the replica of this process listen at its node's address, if that is the loopback.

    Serve itself listens on all addresses. It opens the port after it has made what is deployed,
    whose constructor calls this.
    """
    if is_loopback(ray.util.get_node_ip_address()):
        serve: Any = replica  # Any: not public
        serve.add_port_to_grpc_server = _listen_on_loopback


def _listen_on_loopback(server: Any, everywhere: str) -> Any:  # Any: as Ray's own
    return add_port_to_grpc_server(server, "127.0.0.1:0")
