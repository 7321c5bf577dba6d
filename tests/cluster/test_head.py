"""What a job is told where no cluster can be worked on, without Ray's minutes."""

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from nanoray.cluster import head
from nanoray.cluster.connection import connect
from nanoray.cluster.head import ClusterError, TokenError, VersionError, check_answers
from tests.running import ROOT, Cluster, run_job

OTHER_RAY = """
import ray
import ray._private.utils
from nanoray.cluster import connection
from nanoray.cluster.head import VersionError
ray.__version__ = "2.59.1"
ray._private.worker.ray.__version__ = "2.59.1"
try:
    connection.connect()
except VersionError as error:
    print(error)
"""


def refusal(address: str) -> str:
    """Give the sentence with which an address is refused."""
    with pytest.raises(ClusterError) as refused:
        check_answers(address)
    return str(refused.value)


@contextlib.contextmanager
def web_server() -> Iterator[str]:
    """Serve HTTP; gives HOST:PORT."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Take connections and never say a word, as a process does that hangs."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextlib.contextmanager
def other_grpc_server() -> Iterator[str]:
    """Speak gRPC, and know no call of Ray's head."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "no-such-host:6379"]
)
def test_an_address_where_nobody_answers_is_one_sentence_with_its_remedy(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)

    with pytest.raises(ClusterError) as refused:
        connect()

    assert str(refused.value) == (
        f"No Ray cluster answers at {address}. Start one, or unset RAY_ADDRESS to work here."
    )


@pytest.mark.parametrize(
    "address",
    ["nonsense", "head:", ":6379", "head:ray", "head:0", "head:65536", "tcp://head:6379", "a/b:1"],
)
def test_what_is_no_address_is_told_with_the_form_of_one(address: str):
    assert refusal(address) == (
        f"{address!r} is no address of a Ray cluster. Give RAY_ADDRESS as HOST:PORT, as "
        "ray start prints it, or unset it to work here."
    )


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head.example", "http://a"])
def test_the_job_server_is_not_taken_for_the_cluster(address: str):
    told = refusal(address)

    assert told.startswith(f"{address} is the address of a job server, not of a cluster. Submit")
    assert "`ray job submit -- python jobs/...`" in told
    assert "HOST:PORT" in told


@pytest.mark.parametrize("address", ["auto", "local", "ray://head"])
def test_what_ray_understands_without_a_port_is_left_to_it(address: str):
    check_answers(address)


@pytest.mark.parametrize("server", [web_server, silent_server, other_grpc_server])
def test_what_listens_and_is_no_cluster_is_told_in_ten_seconds_or_so(server):
    with server() as address:
        began = time.monotonic()
        told = refusal(address)
        took = time.monotonic() - began

    assert told.startswith(f"What listens at {address} does not answer as a Ray cluster does. ")
    assert took < 15  # nine, and what else the machine does


def test_a_job_ends_with_that_one_sentence(tmp_path):
    with web_server() as address:
        env = {"RAY_ADDRESS": address}
        code, output = run_job("pretrain.py", "--storage", tmp_path, env=env, timeout=90)

    assert code == 2
    assert output.count("\n") == 1, output
    assert f"error: What listens at {address} does not answer" in output


@pytest.mark.cluster
def test_a_cluster_is_recognized_without_a_token_and_past_a_proxy(
    ray_cluster: Cluster, monkeypatch
):
    with web_server() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")
        monkeypatch.delenv("no_proxy", raising=False)
        began = time.monotonic()
        check_answers(ray_cluster.address)
        took = time.monotonic() - began

    assert took < 1
    assert head.refuses_strangers(ray_cluster.address) is True


def test_nobody_can_be_asked_where_nobody_is():
    assert head.refuses_strangers("127.0.0.1:1") is None


@pytest.mark.cluster
def test_a_driver_with_another_ray_is_told_so_in_one_sentence(ray_cluster: Cluster):
    done = subprocess.run(
        [sys.executable, "-c", OTHER_RAY],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray_cluster.address},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.stdout.startswith("This machine and the cluster differ"), done.stderr
    assert "2.59.1" in done.stdout
    assert done.stdout.endswith(". Install the same Ray and Python on both.\n")


def test_each_way_not_to_get_in_has_its_own_type():
    assert type(head.no_answer("head:1")) is ClusterError
    assert type(head.token_refused("head:1")) is TokenError
    assert type(head.versions_differ("Version mismatch:\n  Ray: 2.59")) is VersionError
