"""`jobs/serve.py` as a process, and what tests ask of it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.chat_run import CONTEXT
from tests.running import free_ports, process_title

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
SKY = {"messages": [{"role": "user", "content": "What color is the sky?"}], "temperature": 0}
LONG = {**SKY, "ignore_eos": True, "max_tokens": CONTEXT - 40, "stream": True}


class ServeJob:
    """`jobs/serve.py` as its user starts it, on a local Ray of its own."""

    def __init__(self, storage: Path, *flags: str) -> None:
        [self.port] = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.lines: list[str] = []
        command = [sys.executable, "jobs/serve.py", "--run", "chat", "--storage", str(storage)]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--dtype", "float32", *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"},
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 120
        while not any("API" in line for line in self.lines):
            assert self.process.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.2)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=90)
        self.reader.join()
        return code

    def post(self, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + CHAT, json=body, timeout=60)


def engine_pids(job: ServeJob) -> list[int]:
    """Find the processes of the engines below the job's."""
    return replica_pids(job, "engine-")


def replica_pids(job: ServeJob, deployment: str) -> list[int]:
    """Find the processes of the replicas of deployments whose names begin so."""
    below = psutil.Process(job.process.pid).children(recursive=True)
    named = [(p.pid, process_title(p)) for p in below]
    return sorted(pid for pid, name in named if "ServeReplica" in name and f":{deployment}" in name)


def wait_for_engines(job: ServeJob, count: int) -> None:
    """Wait until so many engines are there."""
    deadline = time.monotonic() + 60
    while len(engine_pids(job)) != count:
        assert time.monotonic() < deadline, engine_pids(job)
        time.sleep(0.5)


def wait_for_answers(job: ServeJob, wanted: Callable[[set[str]], bool]) -> None:
    """Ask until eight answers in a row, from whichever engines, are as wanted."""
    deadline = time.monotonic() + 30
    while not wanted({job.post(SKY).json()["choices"][0]["message"]["content"] for _ in range(8)}):
        assert time.monotonic() < deadline, "the answers stay what they were"


def served_metric(job: ServeJob, name: str) -> float:
    """Read the sum of a metric over its labels."""
    lines = httpx.get(f"{job.url}/metrics", timeout=60).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def stream(url: str, body: dict[str, Any]) -> tuple[str, str]:
    """Stream one answer; gives its text, and how it ended."""
    text = ""
    try:
        with httpx.stream("POST", url + CHAT, json=body, timeout=60) as response:
            if response.status_code != 200:
                return "", f"status {response.status_code}"
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return text, "done"
                if line:
                    chunk = json.loads(line.removeprefix("data: "))
                    if "error" in chunk:
                        return text, "error"
                    text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
    except httpx.HTTPError as error:
        return text, type(error).__name__
    return text, "broken"


def wait_until_idle(job: ServeJob, seconds: float) -> None:
    """Wait until no answer is in the making."""
    deadline = time.monotonic() + seconds
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    while any(served_metric(job, name) for name in names):
        assert time.monotonic() < deadline, "answers nobody waits for are still made"
        time.sleep(0.1)
