"""Weights & Biases with and without a key, a network, and a server that is there."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nanoray import wandb_run
from nanoray.metrics import read_metrics
from nanoray.storage import list_folder, open_location
from nanoray.wandb_run import why_unreachable
from tests.http_server import serving

TRAIN = """
import logging, os, sys
from nanoray import wandb_run
from nanoray.metrics import MetricsLogger
from nanoray.storage import RunFolder

logging.basicConfig(level=logging.WARNING)
wandb_run.ANSWER_SECONDS, wandb_run.INIT_SECONDS, wandb_run.FINISH_SECONDS = 2.0, 5.0, 3.0
folder = RunFolder(sys.argv[1], "demo").stage("pretrain")
folder.write_config({"depth": 4})
wandb = wandb_run.start_wandb("a-project", folder, {"depth": 4})
logger = MetricsLogger(folder, last_step=0, wandb=wandb)
for step in range(1, 31):
    logger.record({"step": step, "train/loss": 1 / step}, {"step": step})
    if step == 3:
        print("three steps", flush=True)
        sys.stdin.readline()
logger.close()
print("trained", flush=True)
os._exit(0)  # at the end of a process wandb waits some ten seconds more for its own telemetry
"""

KEY = secrets.token_hex(20)


class Server(BaseHTTPRequestHandler):
    """As much of the server of Weights & Biases as a run needs."""

    paths: list[str] = []  # noqa: RUF012 (shared with the test)

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.paths.append(self.path)
        if "graphql" not in self.path:
            self._answer({"exitcode": None, "limits": {}})
        elif "upsertBucket" in body:
            project = {"id": "2", "name": "a-project", "entity": {"id": "3", "name": "me"}}
            bucket = {"id": "1", "name": "demo-pretrain", "project": project}
            self._answer({"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}})
        elif "createRunFiles" in body:
            files = {"runID": "1", "uploadHeaders": [], "files": []}
            self._answer({"data": {"createRunFiles": files}})
        else:
            self._answer({"data": {"model": None}})

    def _answer(self, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def silent() -> Iterator[str]:
    """Give the address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    """Give an address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def start(folder: Path, **variables: str) -> "subprocess.Popen[str]":
    """Start a process that logs some steps, and waits for a line after the third."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB") and k != "NETRC"}
    (folder / "home").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder / "runs")],
        env={**kept, "HOME": str(folder / "home"), "NO_PROXY": "127.0.0.1", **variables},
        cwd=folder / "home",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 60) -> str:
    """Let it go on; gives what it said. wandb alone would wait 90 s, and at the end for ever."""
    output, _ = process.communicate("on\n", timeout=seconds)
    assert process.returncode == 0, output
    assert "trained" in output
    return output


def offline_runs(folder: Path) -> list[str]:
    """Check that every step was logged and nothing holds the key; gives the runs kept offline."""
    fs, stage = open_location(str(folder / "runs/demo/pretrain"))
    steps = [record["step"] for record in read_metrics(fs, f"{stage}/metrics.jsonl")]
    assert steps == list(range(1, 31))
    assert "wandb" not in os.listdir(folder / "home")
    for file in folder.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    return [name for name in list_folder(fs, f"{stage}/wandb") if name.startswith("offline-run")]


def test_without_a_key_nobody_is_asked_and_all_stays_in_the_stage_folder(tmp_path: Path) -> None:
    output = finish(start(tmp_path))

    assert output == "three steps\ntrained\n"
    assert len(offline_runs(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["refusing", "silent"])
def test_a_server_that_cannot_be_reached_costs_a_warning_and_the_run_is_kept_offline(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(kind)

    output = finish(start(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=address))

    reason = {"refusing": "Connection refused", "silent": "no answer within 2 s"}[kind]
    assert output.count("WARNING") == 1
    assert f"cannot be used online ({address}: " in output
    assert reason in output
    assert KEY not in output
    assert len(offline_runs(tmp_path)) == 1


def test_a_server_that_is_none_of_theirs_costs_a_warning_and_the_run_is_kept_offline(
    tmp_path: Path,
) -> None:
    class Other(Server):
        def do_POST(self) -> None:
            self.send_error(404)

    with serving(Other) as address:
        output = finish(start(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=address))

    assert output.count("WARNING:") == 1
    assert "cannot be used online (CommError), so this start logs offline" in output
    assert KEY not in output
    assert len(offline_runs(tmp_path)) == 1


@pytest.mark.parametrize("lost", ["network", "service"])
def test_what_goes_away_later_stops_nothing(tmp_path: Path, lost: str) -> None:
    with serving(Server) as address:
        process = start(tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=address)
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert "three steps\n" in lines
        if lost == "service":
            kill_service(process.pid)
            output = finish(process)
    if lost == "network":
        output = finish(process)

    assert any("graphql" in path for path in Server.paths)
    assert output.count("gets nothing more from this start") == (lost == "service")
    assert KEY not in output
    assert offline_runs(tmp_path) == []


def kill_service(parent: int) -> None:
    """Kill the process that sends what is logged."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = [int(child) for child in file.read().split()]
    assert children
    for child in children:
        os.kill(child, 9)
    time.sleep(0.5)


def test_a_server_that_answers_anything_at_all_is_there(
    silent: str, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Angry(Server):
        def do_GET(self) -> None:
            self.send_error(500)

    for handler in (Server, Angry):
        with serving(handler) as address:
            assert why_unreachable(address) is None
    assert "Connection refused" in str(why_unreachable(refusing))
    assert why_unreachable(silent) == "no answer within 1 s"
    assert why_unreachable("no address") is not None
