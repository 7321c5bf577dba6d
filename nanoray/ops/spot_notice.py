"""A cloud's notice that it takes a spot machine back, handed on to Ray as a drain of its node.

Neither Ray nor its launcher asks the cloud. Runs look for drained nodes, and save while there is
time (nanoray/cluster/leaving.py).
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
import psutil

from nanoray.cluster.loopback import environment_to_reach
from nanoray.config import InputError, require_one_of
from nanoray.storage_errors import first_line

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
ANSWER_SECONDS = 2.0
TRIES = 5
"""Questions without an answer, of a service that never answered, until it is given up."""
DRAIN_SECONDS = 30.0
"""For one attempt to tell Ray."""
AWS_NOTICE_SECONDS = 120.0
GCP_NOTICE_SECONDS = 30.0
"""What the clouds promise; AWS also tells the moment."""


@dataclass(frozen=True)
class Notice:
    """That this machine will be taken away."""

    text: str
    """As the cloud says it."""
    seconds: float
    """Until then."""


Ask = Callable[[httpx.Client], Notice | None]


def ask_aws(client: httpx.Client) -> Notice | None:
    """Ask EC2 (IMDSv2). A recommendation to rebalance, which may come to nothing, is no notice."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = client.put("/latest/api/token", headers=lifetime).raise_for_status().text
    answer = client.get(
        "/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    if answer.status_code == httpx.codes.NOT_FOUND:
        return None
    return Notice(answer.raise_for_status().text, seconds_until_action(answer.text))


def seconds_until_action(text: str) -> float:
    """Read what EC2 says: `{"action": "terminate", "time": "2026-05-01T08:22:00Z"}`."""
    try:
        moment = datetime.fromisoformat(json.loads(text)["time"])
    except (ValueError, KeyError, TypeError):  # it is a notice all the same
        return AWS_NOTICE_SECONDS
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


def ask_gcp(client: httpx.Client) -> Notice | None:
    """Ask Compute Engine."""
    answer = client.get(
        "/computeMetadata/v1/instance/preempted", headers={"Metadata-Flavor": "Google"}
    )
    if answer.raise_for_status().text.strip() != "TRUE":
        return None
    return Notice("preempted", GCP_NOTICE_SECONDS)


CLOUDS: dict[str, tuple[str, Ask]] = {
    "aws": ("http://169.254.169.254", ask_aws),
    "gcp": ("http://metadata.google.internal", ask_gcp),
}
"""Where each cloud answers its machines, and how it is asked."""


@dataclass(frozen=True, kw_only=True)
class SpotNoticeConfig:
    """Wait for the notice that this spot machine is taken back, and let Ray drain its node."""

    cloud: str
    """aws or gcp."""
    address: str | None = None
    """Of the metadata service; by default the cloud's own."""
    node: str | None = None
    """Ray's id of the node, where several are on this machine."""

    def __post_init__(self) -> None:
        require_one_of("cloud", self.cloud, tuple(CLOUDS))


@dataclass(frozen=True)
class OwnNode:
    """The Ray node of this machine."""

    id: str
    head: str
    """Address of the cluster."""
    raylet: psutil.Process

    def is_alive(self) -> bool:
        """Say whether the node's raylet runs."""
        try:
            return self.raylet.is_running() and self.raylet.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def watch_for_notice(config: SpotNoticeConfig) -> str:
    """Wait until the cloud takes this machine back or its Ray node ends; gives which it was.

    Raises:
        InputError: no Ray node is here, or nobody answers as the cloud's metadata service.
    """
    node = own_node(config.node)
    own_address, ask = CLOUDS[config.cloud]
    address = config.address or own_address
    # No proxy: each machine is answered about itself.
    with httpx.Client(base_url=address, timeout=ANSWER_SECONDS, trust_env=False) as client:
        notice = wait_for_notice(lambda: ask(client), node.is_alive, address)
    if notice is None:
        return f"Ray's node {node.id[:8]} has ended"
    logger.warning(
        "%s takes this machine back in %.0f s: %s", config.cloud, notice.seconds, notice.text
    )
    until = time.monotonic() + notice.seconds
    while node.is_alive():
        problem = drain_node(node.head, node.id, notice.text, until - time.monotonic())
        if problem is None:
            return f"Ray drains its node {node.id[:8]}"
        logger.warning("Ray could not be told, and is told again: %s", problem)
        time.sleep(POLL_SECONDS)
    return f"Ray's node {node.id[:8]} has ended"


def own_node(wanted: str | None) -> OwnNode:
    """Find the Ray node of this machine by its raylet, without a connection to the cluster.

    Raises:
        InputError: there is none, or there are several and none is named.
    """
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or []
        if process.info["name"] != "raylet":
            continue
        flags = dict(word.split("=", 1) for word in words if "=" in word)
        if wanted in (None, flags.get("--node_id")):
            found.append(OwnNode(flags["--node_id"], flags["--gcs-address"], process))
    if len(found) != 1:
        what = f"the Ray node {wanted}" if wanted else "one Ray node"
        raise InputError(
            f"There is not {what} on this machine, but {len(found)}. Start it with `ray start`"
            + (f", or give --node: {', '.join(node.id for node in found)}." if found else ".")
        )
    return found[0]


def wait_for_notice(
    ask: Callable[[], Notice | None], is_alive: Callable[[], bool], address: str
) -> Notice | None:
    """Ask every two seconds until there is a notice; None if there is nobody left to be told.

    A service that has answered may be silent for as long as it likes.

    Raises:
        InputError: it never answered.
    """
    failures, has_answered = 0, False
    while is_alive():
        try:
            notice = ask()
            has_answered = True
            if notice is not None:
                return notice
        except httpx.HTTPError as error:
            logger.debug("%s: %r", address, error)
            failures += 1
            if failures >= TRIES and not has_answered:
                raise InputError(
                    f"{address} does not answer as the metadata service of the cloud "
                    f"({first_line(error)}): "
                    "spot notices are not watched. Give the --cloud of this machine."
                ) from error
        time.sleep(POLL_SECONDS)
    return None


def drain_node(head: str, node: str, message: str, seconds: float) -> str | None:
    """Tell Ray that a node is taken away in so many seconds; gives what went wrong, if anything.

    Args:
        head: address of the cluster.
        node: its id.
        message: shown by Ray.
        seconds: until then.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--node-id", node]
    command += ["--address", head, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    command += ["--reason-message", message]
    command += ["--deadline-remaining-seconds", str(max(1, int(seconds)))]
    try:
        done = subprocess.run(
            command,
            env=environment_to_reach(head),
            capture_output=True,
            text=True,
            timeout=DRAIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {DRAIN_SECONDS:.0f} s"
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()
