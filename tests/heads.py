"""Heads as `ray start --head` starts them, with a token, and jobs that are submitted to them."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from nanoray.cluster.connection import SMALL_MACHINE
from tests.running import ROOT, free_ports, small_corpus

BIN = Path(sys.executable).parent
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
    env: dict[str, str]

    @property
    def runs(self) -> Path:
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
    """End a process and all that it started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=5)
    for member in alive:
        member.kill()
    process.wait(timeout=20)


def wait_for_answer(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until the head takes jobs."""
    deadline = time.monotonic() + 120
    while True:
        try:
            if head.get("/api/jobs/").status_code == 200:
                return
        except httpx.HTTPError:
            pass  # it is not listening yet
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@contextmanager
def running_head(**variables: str) -> Iterator[Head]:
    """Run a head, with more variables in its environment, until the end of the block.

    Its folder has a path that is short enough for sockets.
    """
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    folder, checkout = place / "head", place / "checkout"
    folder.mkdir()
    small_corpus(folder / "data")
    unwanted = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=unwanted)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **SMALL_MACHINE,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **variables,
    }
    head = Head(folder, checkout, f"http://127.0.0.1:{ports['--dashboard-port']}", env)
    options = [str(part) for option in ports.items() for part in option]
    options += ["--temp-dir", str(place / "ray"), "--num-cpus", "4", "--disable-usage-stats"]
    options += ["--object-store-memory", str(2**29), "--node-ip-address", "127.0.0.1"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", *options],
            env=env,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_answer(head, process, place / "log")
        yield head
    finally:
        end(process)
        shutil.rmtree(place, ignore_errors=True)
