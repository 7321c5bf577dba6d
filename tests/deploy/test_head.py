"""The head of cluster.yaml, started here by its own command, with other ports and another home."""

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import httpx
import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

from nanoray.cluster.connection import SMALL_MACHINE
from tests.deploy.launcher_rules import TOKEN, Config
from tests.heads import end
from tests.running import ROOT, free_ports

pytestmark = pytest.mark.cluster

OPEN_PATHS = {
    "/",
    "/favicon.ico",
    "/api/authentication_mode",
    "/api/authenticate",  # answers 401 itself
    "/api/healthz",
    "/api/gcs_healthz",
    "/api/local_raylet_healthz",
}
"""Of the dashboard: the page itself, which then asks for the token, and whether Ray is alive."""
OTHER_PORTS = ("--dashboard-agent-listen-port", "--ray-client-server-port", "--metrics-export-port")
HEAD_NODE = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
node, = ray.nodes()
print("HEAD", sorted(node["Resources"]), node["Labels"]["ray.io/market-type"])
"""


@dataclass(frozen=True)
class Head:
    """A head that runs, and how its user reaches it."""

    home: Path
    url: str
    token: str
    env: dict[str, str]

    def submit(self, *arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        """Call `ray job submit ARGUMENTS` in a folder of the user's machine."""
        return subprocess.run(
            [self.home / "venv" / "bin" / "ray", "job", "submit", *arguments],
            env={**self.env, "RAY_ADDRESS": self.url},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )


def upload(config: Config, home: Path) -> None:
    """Lay a home folder as the launcher and deploy/node_setup.sh do."""
    for remote, local in config["file_mounts"].items():
        target = home / remote.removeprefix("~/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if remote != TOKEN:
            target.symlink_to(ROOT / local)
    # In place of what the launcher writes for its autoscaler, which would call a cloud.
    (home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(BASE_READONLY_CONFIG))
    programs = home / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, what in (("ray", "-m ray.scripts.scripts"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {what} "$@"\n')
        (programs / name).chmod(0o755)


def start_command(config: Config, ports: list[int], session: Path) -> str:
    """Give the command that starts Ray on the head, as the launcher would run it, adapted."""
    _, command = config["head_start_ray_commands"]
    own = {
        "--port=6379": f"--port={ports[0]}",
        "--dashboard-port=8265": f"--dashboard-port={ports[1]}",
        "--object-store-memory=4000000000": f"--object-store-memory={2**27}",
    }
    for theirs, ours in own.items():
        assert theirs in command
        command = command.replace(theirs, ours)
    more = [f"{name}={port}" for name, port in zip(OTHER_PORTS, ports[2:], strict=True)]
    more += [f"--temp-dir={session}", "--node-ip-address=127.0.0.1", "--block"]
    return f"{command} {' '.join(more)}"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start the head; its path is short enough for sockets."""
    config: Config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    node_type = config["available_node_types"]["head"]
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    upload(config, home)
    token = secrets.token_hex(32)
    (home / ".ray" / "auth_token").write_text(token)
    (home / ".ray" / "auth_token").chmod(0o600)
    unwanted = ("RAY_", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": "token"}
    ports = free_ports(2 + len(OTHER_PORTS))
    with (home / "log").open("w") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"ulimit -S -n 4096; {start_command(config, ports, home / 'ray')}"],
            env={
                **{name: value for name, value in env.items() if name != "RAY_AUTH_MODE"},
                **SMALL_MACHINE,
                "RAY_enable_autoscaler_v2": "1",
                "RAY_OVERRIDE_RESOURCES": json.dumps(node_type["resources"]),
                "RAY_OVERRIDE_LABELS": json.dumps(node_type["labels"]),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Head(home, f"http://127.0.0.1:{ports[1]}", token, env)
    try:
        wait_for_jobs(running, process)
        yield running
        assert process.poll() is None, (home / "log").read_text()
    finally:
        end(process)
        rmtree(home, ignore_errors=True)


def ask(head: Head, path: str, token: str) -> int:
    """Give the status with which the dashboard answers."""
    return ask_all(head, [("GET", path)], token)["GET", path]


def ask_all(head: Head, routes: list[tuple[str, str]], token: str) -> dict[tuple[str, str], int]:
    """Give the status with which the dashboard answers at each route: method and path."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=head.url, headers=headers, trust_env=False, timeout=10) as client:
        return {route: client.request(*route).status_code for route in routes}


def dashboard_routes() -> set[tuple[str, str]]:
    """Read methods and paths of all routes of the dashboard from its source."""
    folder = Path(ray.__file__).parent / "dashboard"
    declared = re.compile(r"""@routes\.(get|post|put|delete)\(\s*["']([^"']+)""")
    found = {
        (method.upper(), re.sub(r"\{[^}]*\}", "x", path))
        for file in folder.rglob("*_head.py")
        for method, path in declared.findall(file.read_text())
    }
    return found | {("GET", "/logs"), ("GET", "/nowhere"), ("GET", "/api/nowhere")}


def wait_for_jobs(head: Head, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the head takes jobs."""
    deadline = time.monotonic() + 120
    while True:
        try:
            if ask(head, "/api/jobs/", head.token) == 200:
                return
        except httpx.HTTPError:
            pass  # it is not listening yet
        assert process.poll() is None, (head.home / "log").read_text()
        assert time.monotonic() < deadline, (head.home / "log").read_text()
        time.sleep(0.2)


@pytest.mark.slow
def test_a_bare_submit_runs_in_the_projects_folder(head: Head, tmp_path: Path):
    submitted = head.submit("--", "python", "jobs/plan.py", "--depth", "4", folder=tmp_path)

    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "parameters" in submitted.stdout


def test_a_changed_checkout_is_what_runs(head: Head, tmp_path: Path):
    unwanted = ignore_patterns("__pycache__", "corpus")
    copytree(ROOT / "nanoray", tmp_path / "nanoray", ignore=unwanted)
    changed = (tmp_path / "nanoray" / "__init__.py").read_text() + '\n__version__ = "changed"\n'
    (tmp_path / "nanoray" / "__init__.py").write_text(changed)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "say.py").write_text("import nanoray; print(nanoray.__version__)\n")

    submitted = head.submit("--working-dir", ".", "--", "python", "jobs/say.py", folder=tmp_path)

    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "\nchanged\n" in submitted.stdout


def test_the_head_has_nothing_that_a_task_could_take(head: Head, tmp_path: Path):
    submitted = head.submit("--", "python", "-c", HEAD_NODE, folder=tmp_path)

    said = submitted.stdout
    line = next((line for line in said.splitlines() if line.startswith("HEAD")), said)
    assert "'CPU'" not in line
    assert "'GPU'" not in line
    assert line.endswith("on-demand")


def test_nobody_else_reaches_the_dashboard(head: Head):
    port = int(head.url.rpartition(":")[2])
    listening = {
        each.laddr.ip
        for each in psutil.net_connections("tcp")
        if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN
    }

    statuses = [ask(head, "/api/jobs/", token) for token in ("", "0" * 64, head.token)]

    assert listening == {"127.0.0.1"}
    assert statuses == [401, 403, 200]


def test_every_route_of_the_dashboard_asks_for_the_token(head: Head):
    guarded = [route for route in sorted(dashboard_routes()) if route[1] not in OPEN_PATHS]

    without = ask_all(head, [*guarded, ("POST", "/api/authenticate")], "")
    wrong = ask_all(head, guarded, "0" * 64)

    assert {route: status for route, status in without.items() if status != 401} == {}
    assert {route: status for route, status in wrong.items() if status != 403} == {}
    assert {("POST", "/api/jobs/"), ("DELETE", "/api/jobs/x"), ("GET", "/nodes")} <= {*guarded}
    assert len(guarded) > 50
