"""Runs that are submitted to a head with tokens, from a checkout that is not the head's folder."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from nanoray.cluster.connection import SMALL_MACHINE
from tests.running import ROOT, TINY, current_step, free_ports, small_corpus

pytestmark = pytest.mark.cluster

STEPS = 150
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
            timeout=240,
        )

    def submit(
        self, *options: object, run: str = "r", **env: str
    ) -> "subprocess.CompletedProcess[str]":
        """Submit a run as README.md says."""
        data = ("--data", self.folder / "data", "--num-steps", STEPS, "--save-every", 20)
        command = ("python", "jobs/pretrain.py", "--run", run, *data, *TINY)
        return self.job("submit", "--working-dir", ".", *options, "--", *command, **env)


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
    token = {"Authorization": f"Bearer {head.env['RAY_AUTH_TOKEN']}"}
    deadline = time.monotonic() + 120
    while True:
        try:
            answer = httpx.get(f"{head.url}/api/jobs/", headers=token, trust_env=False, timeout=10)
            if answer.status_code == 200:
                return
        except httpx.HTTPError:
            pass  # it is not listening yet
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a head in a folder of its own, whose path is short enough for sockets."""
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


def wait_for_saved_step(head: Head, run: str) -> None:
    """Wait until a run has made some steps more than its first checkpoint has."""
    deadline = time.monotonic() + 180
    while current_step(head.runs, run) < 30:
        assert time.monotonic() < deadline, head.job("list").stdout
        time.sleep(0.05)


@pytest.mark.slow
def test_a_submitted_run_lands_where_the_head_was_started(head: Head):
    submitted = head.submit("--submission-id", "whole", run="whole")

    said = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, said
    assert f"report: {head.runs}/whole/pretrain/report.html" in said
    assert current_step(head.runs, "whole") == STEPS
    assert (head.runs / "whole" / "pretrain" / "report.html").exists()
    assert not (head.checkout / "runs").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_when_it_is_submitted_again(head: Head):
    started = head.submit("--submission-id", "first", "--no-wait", run="stopped")
    assert started.returncode == 0, started.stderr
    wait_for_saved_step(head, "stopped")

    stopped = head.job("stop", "first")
    at = current_step(head.runs, "stopped")
    again = head.submit("--submission-id", "second", run="stopped")

    assert stopped.returncode == 0, stopped.stderr
    assert at < STEPS, "the run ended before it was stopped"
    assert again.returncode == 0, again.stdout
    assert "from the checkpoint of step" in again.stdout + again.stderr
    assert current_step(head.runs, "stopped") == STEPS


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_the_token_nothing_is_submitted(head: Head, token: str):
    mode = "token" if token else "disabled"

    submitted = head.submit(run="refused", RAY_AUTH_TOKEN=token, RAY_AUTH_MODE=mode)

    assert submitted.returncode != 0
    assert "token" in submitted.stdout + submitted.stderr
    assert not (head.runs / "refused").exists()
