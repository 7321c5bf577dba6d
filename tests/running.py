"""Jobs and clusters as a user runs them: real processes, started, watched and killed."""

import ipaddress
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from nanoray.cluster.connection import SMALL_MACHINE
from tests.support import embedded_text, write_parquet

ROOT = Path(__file__).parents[1]

LONGEST_WAIT_SECONDS = 420.0
"""For a step."""

HOLD_A_CLUSTER = """
import sys, time, ray
ray.init(address="local", num_cpus=int(sys.argv[1]), object_store_memory=2**29,
         dashboard_port=0, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that lives as long as the process which holds it."""

    address: str
    holder: "subprocess.Popen[str]"

    def environment(self) -> dict[str, str]:
        """Give what a job needs to find the cluster."""
        return {"RAY_ADDRESS": self.address}

    def workers(self) -> list[psutil.Process]:
        """Find the training workers of all jobs."""
        everyone = psutil.Process(self.holder.pid).children(recursive=True)
        return [p for p in everyone if process_title(p).startswith("ray::RayTrainWorker")]

    def stop(self) -> None:
        """End the cluster."""
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait(timeout=60)
        assert self.holder.stdout is not None
        self.holder.stdout.close()


def free_ports(count: int) -> list[int]:
    """Find ports on which nobody listens; all are held until the last is found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def process_title(process: psutil.Process) -> str:
    """Give the command line of a process, empty if it has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def listeners(root: psutil.Process) -> set[tuple[str, str]]:
    """List where a process and all below it listen for TCP: name and address of each."""
    found = set()
    for process in [root, *root.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            found |= {
                (process.name(), f"{each.laddr.ip}:{each.laddr.port}")
                for each in process.net_connections("tcp")
                if each.status == psutil.CONN_LISTEN
            }
    return found


def is_local(address: str) -> bool:
    """Say whether only this machine reaches an address; gRPC's are those of IPv4 in IPv6."""
    host = ipaddress.ip_address(address.rpartition(":")[0])
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    return (mapped or host).is_loopback


def start_cluster(num_cpus: int) -> Cluster:
    """Start a cluster with so many logical CPUs on this machine."""
    env = {**os.environ, "RAY_AUTH_MODE": "token", **SMALL_MACHINE}
    # Readers have the cluster's environment, not the job's. With jitter units end out of order;
    # without, blocks could come right by luck.
    env.setdefault("NANORAY_TEST_READ_JITTER_SECONDS", "0.2")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_CLUSTER, str(num_cpus)],
        env=env,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    return Cluster(holder.stdout.readline().strip(), holder)


def start_job(
    job: str, *arguments: object, env: dict[str, str] | None = None
) -> "subprocess.Popen[str]":
    """Start `python jobs/JOB ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / job), *map(str, arguments)],
        env={**os.environ, "RAY_AUTH_MODE": "token", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_job(
    job: str, *arguments: object, env: dict[str, str] | None = None, timeout: float = 300
) -> tuple[int, str]:
    """Run a job to its end; gives exit code and all that it printed."""
    process = start_job(job, *arguments, env=env)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"{job} ran longer than {timeout} s:\n{output}") from None
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


def kill_job(process: "subprocess.Popen[str]") -> str:
    """Kill a job's driver as `kill -9` does; gives what it had printed."""
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    return output


def small_corpus(folder: Path) -> Path:
    """Write one file of 400 kB, whose twenty units are some hundred short rows each."""
    text = embedded_text(400_000)
    documents = [text[start : start + 1500] for start in range(0, len(text), 1500)]
    write_parquet(folder, "text.parquet", documents, row_group_size=40)
    return folder / "text.parquet"


TINY_SHAPE = (
    *("--depth", 1, "--head-dim", 32, "--vocab-size", 400, "--max-seq-len", 64),
    *("--total-batch-tokens", 1024, "--device-batch-size", 2, "--validation-tokens", 640),
    *("--cpus-per-worker", 1),
)
TINY = (*TINY_SHAPE, "--eager", "--threads-per-worker", 1)
"""Flags of a run whose steps take some milliseconds: 16 rows of 64 tokens, 100,352 weights."""


def read_run(storage: Path, run: str, stage: str = "pretrain") -> dict[str, Any]:
    """Read what must be equal between two runs of the same config."""
    folder = storage / run / stage
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    files = json.loads((newest / "manifest.json").read_text())["files"]
    return {
        "losses": [(m["step"], m["train/loss"], m["train/grad_norm"]) for m in metrics],
        "bits_per_byte": [
            (m["step"], m["validation/bits_per_byte"])
            for m in metrics
            if "validation/bits_per_byte" in m
        ],
        "ledger": (folder / "ledger.jsonl").read_text(),
        "weights": files["model.safetensors"]["sha256"],
        "optimizer": {n: f["sha256"] for n, f in files.items() if n.startswith("optimizer")},
    }


def current_step(storage: Path, run: str, stage: str = "pretrain") -> int:
    """Give the newest step in metrics.jsonl; 0 before there is one."""
    path = storage / run / stage / "metrics.jsonl"
    # The last line may be on its way to the disk.
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(whole[-1])["step"] if whole else 0


def wait_for_step(
    process: "subprocess.Popen[str]",
    storage: Path,
    run: str,
    step: int,
    *,
    stage: str = "pretrain",
) -> None:
    """Wait until a stage of a run has made a step."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while current_step(storage, run, stage) < step:
        assert time.monotonic() < deadline, f"step {step} was not reached"
        assert process.poll() is None, f"the job ended early:\n{process.communicate()[0]}"
        time.sleep(0.02)


def kill_a_worker(cluster: Cluster, rng: random.Random) -> None:
    """Kill one training worker as `kill -9` does."""
    rng.choice(cluster.workers()).kill()
