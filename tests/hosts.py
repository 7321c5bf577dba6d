"""Hosts with addresses of their own on this machine: network namespaces on a bridge."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanoray.cluster.connection import SMALL_MACHINE
from nanoray.ops.local_cluster import HEALTH_CHECKS
from tests.running import ROOT, process_title

NETWORK = "10.99.0"
GCS_PORT = 6379
OBJECT_STORE_BYTES = 2**28
START_SECONDS, END_SECONDS = 600.0, 20.0
"""On a busy machine Ray gives up a raylet whose agent starts slowly, several times in a row."""
SUPERVISE = 'while true; do "$@"; sleep 1; done'
"""What systemd or a cloud's agent does: a raylet that has ended is started again."""


class Host:
    """A network namespace with one cable to the bridge."""

    def __init__(self, prefix: str, number: int, folder: Path) -> None:
        self.name, self.cable = f"{prefix}-{number}", f"{prefix}v{number}"
        self.address = f"{NETWORK}.{number}"
        self.folder = folder / str(number)
        self.folder.mkdir()
        self.supervisor: subprocess.Popen[bytes] | None = None

    def connect(self, bridge: str) -> None:
        """Make the namespace, and plug it into the bridge."""
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", bridge, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", self.name, "link", "set", device, "up")
        # Programs ask for the way to the outside in order to learn their own address.
        ip("-n", self.name, "route", "add", "default", "dev", "eth0")

    def command(self, *words: object) -> list[str]:
        """Give the command line that runs a command on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def start_ray(self, environment: dict[str, str], *flags: object) -> None:
        """Start a raylet, and start it again whenever it ends."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        own = ["--node-ip-address", self.address, "--temp-dir", self.folder]
        own += ["--object-store-memory", OBJECT_STORE_BYTES, "--disable-usage-stats"]
        with (self.folder / "ray.log").open("w") as log:
            self.supervisor = subprocess.Popen(
                self.command("sh", "-c", SUPERVISE, "supervisor", *ray, *own, *flags),
                env={**os.environ, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        """Give what `ray start` printed."""
        return (self.folder / "ray.log").read_text()

    def starts(self) -> int:
        """Count how often Ray has been up here."""
        return self.log().count("Ray runtime started")

    def cut(self) -> None:
        """Pull the cable: nothing arrives and nothing leaves, and nobody is told."""
        ip("link", "set", self.cable, "down")

    def heal(self) -> None:
        """Plug it in again."""
        ip("link", "set", self.cable, "up")

    def hide(self, folder: Path) -> None:
        """Take a folder away from this host: in its place is an empty one that is read-only."""
        self._mount("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder))

    def show(self, folder: Path) -> None:
        """Give it back."""
        self._mount("umount", str(folder))

    def _mount(self, *words: str) -> None:
        """Call a command in the mount namespace that `ip netns exec` has given to Ray here."""
        assert self.supervisor is not None, "started"
        namespace = f"--mount=/proc/{self.supervisor.pid}/ns/mnt"
        subprocess.run(["nsenter", namespace, *words], check=True, capture_output=True)

    def processes(self) -> list[psutil.Process]:
        """Give all that runs on this host."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        found = []
        for pid in pids.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def workers(self) -> list[psutil.Process]:
        """Give the training workers on this host."""
        return [p for p in self.processes() if process_title(p).startswith("ray::RayTrainWorker")]

    def remove(self) -> None:
        """End all that runs here, and take the host away."""
        deadline = time.monotonic() + END_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.1)
        if self.supervisor is not None:
            self.supervisor.wait()
        for command in (("link", "delete", self.cable), ("netns", "delete", self.name)):
            subprocess.run(["ip", *command], capture_output=True, check=False)


def ip(*words: str) -> None:
    """Call `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def hosts_on_a_bridge(count: int) -> Iterator[list[Host]]:
    """Connect so many hosts; nothing of them is left afterwards."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 to make network namespaces")
    prefix = f"nr{secrets.token_hex(3)}"
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir="/tmp"))  # sockets: 107 letters at most
    hosts = [Host(prefix, number, folder) for number in range(1, count + 1)]
    try:
        try:
            ip("link", "add", prefix, "type", "bridge")
            ip("link", "set", prefix, "up")
            for host in hosts:
                host.connect(prefix)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted here: {error.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts:
            host.remove()
        subprocess.run(["ip", "link", "delete", prefix], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def start_cluster_on(hosts: list[Host], cpus_per_host: int) -> dict[str, str]:
    """Start a head for drivers on the first host, and workers' nodes on the others.

    Returns:
        The environment of a job on the head.
    """
    head, *others = hosts
    token = head.folder.parent / "token"
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": str(ROOT),
        # With jitter units end out of order; without, blocks could come right by luck.
        "NANORAY_TEST_READ_JITTER_SECONDS": "0.2",
        # Who is cut off lives on, instead of ending after a minute without the head.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
        **SMALL_MACHINE,
        **HEALTH_CHECKS,
    }
    head.start_ray(environment, "--head", "--port", GCS_PORT, "--num-cpus", 0)
    wait_for_ray(head)
    environment["RAY_ADDRESS"] = f"{head.address}:{GCS_PORT}"
    start_nodes_on(others, environment, cpus_per_host)
    return environment


def start_nodes_on(hosts: list[Host], environment: dict[str, str], cpus_per_host: int) -> None:
    """Start nodes for workers; `environment` is that of the cluster's jobs."""
    address = environment["RAY_ADDRESS"]
    for host in hosts:
        host.start_ray(environment, "--address", address, "--num-cpus", cpus_per_host)
        wait_for_ray(host)


def wait_for_ray(host: Host) -> None:
    """Wait until Ray has been up once on a host; one by one, as each start takes seconds of CPU."""
    deadline = time.monotonic() + START_SECONDS
    while not host.starts():
        assert time.monotonic() < deadline, host.log()
        time.sleep(0.5)
