"""A head that `ray start` started, and jobs that are submitted to it, as a user does."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from nanoray.cluster.connection import SMALL_MACHINE
from tests.running import ROOT, free_ports, small_corpus

BIN = Path(sys.executable).parent
ADDRESS = "127.0.0.1"
PORTS = (
    "--port",
    "--dashboard-port",
    "--dashboard-agent-listen-port",
    "--ray-client-server-port",
    "--metrics-export-port",
)


@dataclass(frozen=True)
class Head:
    """What `ray start --head` started, and how it is reached."""

    folder: Path
    """Where it was called."""
    checkout: Path
    url: str
    address: str
    """Of the cluster, for drivers on this machine."""
    env: dict[str, str]
    process: "subprocess.Popen[bytes]"

    @property
    def runs(self) -> Path:
        """Where jobs keep their runs."""
        return self.folder / "runs"

    def job(self, *arguments: object, **env: str) -> "subprocess.CompletedProcess[str]":
        """Call `ray job ARGUMENTS` in the checkout, and wait for its end."""
        return subprocess.run(
            [BIN / "ray", "job", *map(str, arguments)],
            env={**self.env, "RAY_ADDRESS": self.url, **env},
            cwd=self.checkout,
            capture_output=True,
            text=True,
            timeout=480,
        )

    def get(self, path: str) -> httpx.Response:
        """Ask the dashboard, with the token."""
        token = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        return httpx.get(f"{self.url}{path}", headers=token, trust_env=False, timeout=20)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started; nothing, where it has ended by itself."""
    if process.poll() is not None:
        return
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            member.kill()
    process.wait(timeout=20)


def wait_for_answer(head: Head, log: Path) -> None:
    """Wait until the head takes jobs."""
    deadline = time.monotonic() + 120
    while True:
        try:
            if head.get("/api/jobs/").status_code == 200:
                return
        except httpx.HTTPError:
            pass  # it is not listening yet
        assert head.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@contextmanager
def running_head(
    *options: object, autoscaling: str = "", start_in: str = "head", **variables: str
) -> Iterator[Head]:
    """Start a head in a folder of its own, whose path is short enough for sockets.

    Args:
        options: of `ray start`, besides ports and folders.
        start_in: a folder of its own, or "checkout", as the documents say.
        autoscaling: the autoscaler's config, in which PORT stands for that of the cluster.
        variables: more of them in the environment of the head and of what is submitted.
    """
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    folder, checkout = place / start_in, place / "checkout"
    unwanted = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    small_corpus(folder / "data")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **SMALL_MACHINE,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    arguments = [str(part) for option in ports.items() for part in option]
    arguments += ["--temp-dir", str(place / "ray"), "--disable-usage-stats"]
    arguments += ["--object-store-memory", str(2**28), "--node-ip-address", ADDRESS]
    if autoscaling:
        (place / "autoscaling.yaml").write_text(autoscaling.replace("PORT", str(ports["--port"])))
        arguments += ["--autoscaling-config", str(place / "autoscaling.yaml")]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *arguments, *map(str, options)],
            env=env,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    head = Head(
        folder,
        checkout,
        f"http://{ADDRESS}:{ports['--dashboard-port']}",
        f"{ADDRESS}:{ports['--port']}",
        env,
        process,
    )
    try:
        wait_for_answer(head, place / "log")
        yield head
    finally:
        end(process)
        shutil.rmtree(place, ignore_errors=True)
