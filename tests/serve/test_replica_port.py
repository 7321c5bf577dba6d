"""Where replicas listen; that a server's do so: tests/serve/test_deployment.py."""

import asyncio
from typing import Any

import psutil
import pytest
import ray
from ray.serve._private import replica as replica_module

from nanoray.serve.replica_port import listen_as_its_node
from tests.running import listeners

replica: Any = replica_module  # Any: not public


async def address_of_a_server() -> str:
    """Open a port as Serve's replica does, and find its address."""
    server = replica.create_grpc_server_with_interceptors(asynchronous=True, options=[])
    port = replica.add_port_to_grpc_server(server, "[::]:0")
    await server.start()
    try:
        own = {address for _, address in listeners(psutil.Process())}
        return next(a.rpartition(":")[0] for a in own if a.endswith(f":{port}"))
    finally:
        await server.stop(grace=None)


@pytest.mark.parametrize(
    ("node", "address"), [("127.0.0.1", "::ffff:127.0.0.1"), ("192.0.2.1", "::")]
)
def test_a_replica_listens_on_the_loopback_where_its_node_does(
    monkeypatch: pytest.MonkeyPatch, node: str, address: str
):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: node)
    own = replica.add_port_to_grpc_server
    monkeypatch.setattr(replica, "add_port_to_grpc_server", own)  # so that what is set is undone

    listen_as_its_node()

    assert asyncio.run(address_of_a_server()) == address
