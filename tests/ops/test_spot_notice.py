import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from itertools import chain, repeat

import httpx
import pytest

from nanoray.config import InputError
from nanoray.ops import spot_notice
from nanoray.ops.spot_notice import (
    AWS_NOTICE_SECONDS,
    CLOUDS,
    Notice,
    SpotNoticeConfig,
    own_node,
    seconds_until_action,
    wait_for_notice,
)
from tests.http_server import serving
from tests.running import free_ports, start_job

ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
PREEMPTED = "/computeMetadata/v1/instance/preempted"


def in_two_minutes() -> str:
    moment = datetime.now(UTC) + timedelta(seconds=120)
    return json.dumps({"action": "terminate", "time": moment.strftime("%Y-%m-%dT%H:%M:%SZ")})


Answers = Iterator[tuple[int, str]]


@contextmanager
def metadata_service(answers: Answers) -> Iterator[str]:
    """Answer as both clouds do; only questions with the right headers draw from the answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            asked = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
            known = asked and self.path == "/latest/api/token"
            self.answer(*((200, "secret") if known else (400, "")))

        def do_GET(self) -> None:
            aws = self.path == ACTION and self.headers["X-aws-ec2-metadata-token"] == "secret"
            google = self.path == PREEMPTED and self.headers["Metadata-Flavor"] == "Google"
            if self.path == REBALANCE:
                self.answer(200, in_two_minutes())
            else:
                self.answer(*(next(answers) if aws or google else (401, "")))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as address:
        yield address


def told(cloud: str, address: str, is_alive: Callable[[], bool] = lambda: True) -> Notice | None:
    """Wait for the notice of a cloud that answers at an address."""
    ask = CLOUDS[cloud][1]
    with httpx.Client(base_url=address, trust_env=False) as client:
        return wait_for_notice(lambda: ask(client), is_alive, address)


@pytest.fixture(autouse=True)
def polled_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spot_notice, "POLL_SECONDS", 0.01)


def test_a_notice_of_aws_comes_with_the_seconds_that_are_left():
    nothing, notice = (404, ""), (200, in_two_minutes())

    with metadata_service(iter([nothing, nothing, notice])) as address:
        found = told("aws", address)

    assert found is not None
    assert found.text == notice[1]
    assert 110 < found.seconds <= 120


def test_a_notice_of_google_leaves_thirty_seconds():
    with metadata_service(iter([(200, "FALSE"), (200, "FALSE"), (200, "TRUE")])) as address:
        assert told("gcp", address) == Notice("preempted", 30.0)


def test_a_notice_without_a_moment_is_a_notice():
    assert seconds_until_action('{"action": "stop"}') == AWS_NOTICE_SECONDS
    assert seconds_until_action("soon") == AWS_NOTICE_SECONDS


def test_a_service_that_has_answered_may_fail_for_a_while():
    answers = chain([(404, "")], repeat((503, ""), 20), [(200, in_two_minutes())])

    with metadata_service(answers) as address:
        assert told("aws", address) is not None


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_machine_without_such_a_service_is_told_in_one_sentence(cloud: str):
    [port] = free_ports(1)

    with pytest.raises(InputError, match="does not answer as the metadata service") as raised:
        told(cloud, f"http://127.0.0.1:{port}")

    assert "\n" not in str(raised.value)


def test_a_service_that_denies_every_question_is_told_of_in_one_sentence_too():
    with (
        metadata_service(repeat((403, ""))) as address,
        pytest.raises(InputError, match="403") as raised,
    ):
        told("gcp", address)

    assert "\n" not in str(raised.value)


def test_the_watch_ends_with_the_node():
    alive = iter([True, True, False])

    with metadata_service(repeat((404, ""))) as address:
        assert told("aws", address, lambda: next(alive)) is None


def test_wrong_input_is_one_sentence():
    with pytest.raises(InputError, match=r"--cloud azure is unknown\. Choose aws or gcp"):
        SpotNoticeConfig(cloud="azure")
    with pytest.raises(InputError, match="There is not the Ray node 00ff on this machine, but 0"):
        own_node("00ff")


TWO_BUSY_NODES = """
import sys
import ray
import nanoray.cluster.connection as connection
from nanoray.ops.local_cluster import LocalCluster

class Worker:
    def node(self):
        return ray.get_runtime_context().get_node_id()

cluster = LocalCluster(2, 1)
connection.connect(cluster.address)
# Ray ends a drained node at once if nothing is on it.
workers = [ray.remote(Worker).options(num_cpus=1).remote() for _ in range(2)]
print("busy", *ray.get([worker.node.remote() for worker in workers]), flush=True)
sys.stdin.readline()
print("draining", *ray._private.state.state.get_draining_nodes(), flush=True)
sys.stdin.read()
cluster.stop()
"""


@pytest.fixture
def busy_cluster() -> Iterator["subprocess.Popen[str]"]:
    cluster = subprocess.Popen(
        [sys.executable, "-c", TWO_BUSY_NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield cluster
    cluster.communicate(timeout=60)


def nodes_told(cluster: "subprocess.Popen[str]", word: str) -> list[str]:
    """Read what follows a word; Ray prints lines of its own between ours."""
    assert cluster.stdout is not None
    line = cluster.stdout.readline()
    while not line.startswith(word):
        assert line, "the cluster has ended"
        line = cluster.stdout.readline()
    return line.split()[1:]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_notice_drains_the_node_of_its_machine_and_no_other(
    busy_cluster: "subprocess.Popen[str]",
):
    taken, other = nodes_told(busy_cluster, "busy")
    assert busy_cluster.stdin is not None

    with (
        metadata_service(chain([(404, "")] * 2, [(200, in_two_minutes())])) as its_own,
        metadata_service(repeat((404, ""))) as calm,
    ):
        command = ("spot_notice.py", "--cloud", "aws", "--address")
        bystander = start_job(*command, calm, "--node", other)
        watcher = start_job(*command, its_own, "--node", taken)
        output, _ = watcher.communicate(timeout=120)
        busy_cluster.stdin.write("which\n")
        busy_cluster.stdin.flush()
        draining = nodes_told(busy_cluster, "draining")
        watches_on = bystander.poll() is None
        os.kill(own_node(other).raylet.pid, signal.SIGKILL)
        last_words, _ = bystander.communicate(timeout=60)

    assert watcher.returncode == 0, output
    assert "aws takes this machine back in 1" in output
    assert f"Ray drains its node {taken[:8]}" in output
    assert draining == [taken]
    assert watches_on
    assert (bystander.returncode, last_words) == (0, f"Ray's node {other[:8]} has ended\n")
