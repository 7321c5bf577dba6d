"""The cable of a host is pulled in the middle of a run: it goes on, equal to the undisturbed one.

Storage is one folder for all hosts, so who is cut off from the others is not cut off from that.
What a test hides from a host are the checkpoints alone: readers of the data may run there.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from nanoray.cluster.inspection import process_stack
from tests.faults.test_kill import arguments
from tests.hosts import Host, hosts_on_a_bridge, start_cluster_on, start_nodes_on
from tests.running import ROOT, current_step, read_run

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

STEPS = 120
CPUS_PER_HOST = 3
"""One worker of two, and one for the stream: no host has room for both workers."""
CUT_SECONDS = 20.0
"""Longer than Ray waits for a host."""
LONGEST_WAIT_SECONDS = 900.0
"""Where other work goes on beside, a raylet may have to be started several times."""
RETRIES = "_wait_for_storage"
"""Where the thread waits that saves, when it could not."""


@dataclass
class Run:
    """A job on the head, and its folder."""

    head: Host
    environment: dict[str, str]
    storage: Path
    name: str
    committed: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    """Inode and time of each file of a checkpoint, as they were when it was first seen."""

    def __post_init__(self) -> None:
        script = ROOT / "jobs" / "pretrain.py"
        flags = [*arguments(self.storage, self.name, 2, STEPS), "--cpus-per-worker", 2]
        self.log = self.storage / f"{self.name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.head.command(sys.executable, script, *flags, "--keep-last", STEPS),
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def folder(self, name: str) -> Path:
        return self.storage / self.name / "pretrain" / name

    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, what: str, is_true: Any) -> float:  # Any: a function
        """Wait, and look that no checkpoint changes meanwhile; gives the moment."""
        deadline = time.time() + LONGEST_WAIT_SECONDS
        while not is_true():
            assert self.process.poll() in (None, 0), self.output()
            assert time.time() < deadline, f"not {what}:\n{self.output()}"
            self.check_that_no_checkpoint_changed()
            time.sleep(0.1)
        return time.time()

    def finish(self) -> dict[str, Any]:  # Any: JSON
        """Wait for a good end; gives what must be equal."""
        self.wait_until("ended", lambda: self.process.poll() is not None)
        assert self.process.returncode == 0, self.output()
        return read_run(self.storage, self.name)

    def check_that_no_checkpoint_changed(self) -> None:
        for path in self.folder("checkpoints").glob("step_*"):
            files = {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.iterdir()}
            assert self.committed.setdefault(path.name, files) == files, path.name

    def attempts(self) -> list[int]:
        """Give which attempt has committed each checkpoint."""
        paths = sorted(self.folder("checkpoints").glob("step_*/manifest.json"))
        return [json.loads(path.read_text())["attempt"] for path in paths]

    def first_step_after(self, moment: float) -> float:
        """Give when the first step was made after a moment."""
        lines = self.folder("metrics.jsonl").read_text().splitlines()
        return next(at for line in lines if (at := json.loads(line)["time"]) > moment)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Network:
    """A head, hosts with one worker's room each, one of them not started; and a calm run."""

    hosts: list[Host]
    environment: dict[str, str]
    storage: Path
    expected: dict[str, Any]  # Any: JSON

    @contextmanager
    def run(self, name: str) -> Iterator[Run]:
        run = Run(self.hosts[0], self.environment, self.storage, name)
        try:
            yield run
        finally:
            run.kill()

    def host_of_rank_0(self, run: Run) -> tuple[Host, psutil.Process]:
        """Find who writes the metrics."""
        path = str(run.folder("metrics.jsonl"))
        for host in self.hosts:
            for worker in host.workers():
                if path in {file.path for file in worker.open_files()}:
                    return host, worker
        raise AssertionError("nobody writes the metrics")


def stack_of(worker: psutil.Process) -> str:
    """Give where a process stands, which has to live."""
    while (stack := process_stack(worker.pid)).startswith("no stack"):
        assert worker.is_running(), "it has ended, and so proves nothing"
    return stack


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with hosts_on_a_bridge(4) as hosts, tempfile.TemporaryDirectory() as folder:
        environment = start_cluster_on(hosts[:3], CPUS_PER_HOST)
        network = Network(hosts, environment, Path(folder), {})
        with network.run("calm") as calm:
            network.expected = calm.finish()
        yield network


def test_a_host_that_is_cut_off_and_comes_back_leaves_the_undisturbed_run(network: Network):
    with network.run("cut") as run:
        run.wait_until("half way", lambda: current_step(run.storage, run.name) >= STEPS // 2 - 5)
        host, worker = network.host_of_rank_0(run)
        starts = host.starts()
        host.cut()
        cut = time.time()
        noticed = run.wait_until("noticed", lambda: "marked dead" in run.output())
        run.wait_until("long enough", lambda: time.time() > cut + CUT_SECONDS)
        outlived = worker.is_running()
        host.heal()
        healed = time.time()
        back = run.wait_until("back", lambda: host.starts() > starts)
        result = run.finish()
        again = run.first_step_after(healed)

    print(f"\ncut -> noticed {noticed - cut:.1f} s, healed -> host is back {back - healed:.1f} s")
    print(f"healed -> training again {again - healed:.1f} s")
    assert noticed - cut < CUT_SECONDS
    assert outlived, "nobody tells those who were cut off that they are given up"
    assert "lost worker on rank" in run.output()
    assert result == network.expected
    assert set(run.attempts()) == {1, 2}
    assert run.attempts() == sorted(run.attempts())


def test_who_was_cut_off_with_a_save_under_way_commits_nothing_over_his_successor(
    network: Network,
):
    start_nodes_on(network.hosts[3:], network.environment, CPUS_PER_HOST)
    with network.run("split") as run:
        run.wait_until("half way", lambda: current_step(run.storage, run.name) >= STEPS // 2 - 15)
        host, worker = network.host_of_rank_0(run)
        host.hide(run.folder("checkpoints"))
        run.wait_until("failed to save", lambda: "could not be saved" in run.output())
        host.cut()
        cut = time.time()
        noticed = run.wait_until("noticed", lambda: "marked dead" in run.output())
        run.wait_until("replaced", lambda: "attempt 2 starts" in run.output())
        waited = RETRIES in stack_of(worker)
        host.show(run.folder("checkpoints"))
        run.wait_until("tried again", lambda: RETRIES not in stack_of(worker))
        assert worker.is_running()
        result = run.finish()
        again = run.first_step_after(cut)
        host.heal()

    print(f"\ncut -> noticed {noticed - cut:.1f} s, cut -> training again {again - cut:.1f} s")
    failed = re.search(r"step (\d+) could not be saved", run.output())
    assert waited
    assert failed is not None
    assert run.attempts()[int(failed[1]) // 20 - 1] == 2, "the step that both have tried"
    assert result == network.expected
    assert run.attempts() == sorted(run.attempts())
