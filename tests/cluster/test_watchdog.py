import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray

from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Beat, Start, start_monitor
from nanoray.cluster.recovery import Cause
from nanoray.cluster.watchdog import (
    Inspection,
    Watchdog,
    inspect_processes,
    kill_processes,
    kill_workers,
    process_status,
)
from tests.driver import connected
from tests.running import Cluster


def wait_for_status(pid: int, status: str) -> None:
    deadline = time.monotonic() + 10
    while process_status(pid) != status:
        assert time.monotonic() < deadline, process_status(pid)
        time.sleep(0.01)


def test_a_stopped_process_is_seen_as_stopped_and_its_stack_is_read(
    sleeper: "subprocess.Popen[str]",
) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    wait_for_status(sleeper.pid, psutil.STATUS_STOPPED)

    (found,) = inspect_processes([(3, sleeper.pid)])

    assert (found.rank, found.status) == (3, "stopped")
    assert "wait_in_a_collective" in found.stack


def test_a_stopped_process_is_killed_and_one_that_has_gone_is_passed_over(
    sleeper: "subprocess.Popen[str]",
) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)
    wait_for_status(sleeper.pid, psutil.STATUS_STOPPED)

    born = psutil.Process(sleeper.pid).create_time()
    kill_processes([(2**22 + 1, 1.0), (sleeper.pid, born - 3600)])
    assert sleeper.poll() is None, "its number was another's before"
    killed = kill_processes([(2**22 + 1, 1.0), (sleeper.pid, born - 2)])  # the clock was set since

    assert killed
    assert sleeper.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.cluster
def test_what_could_not_be_killed_is_killed_when_its_node_answers(
    ray_cluster: Cluster, sleeper: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with connected(ray_cluster):
        monitor = start_monitor(str(tmp_path), "1", on_this_node())
        ray.get(monitor.begin_group.remote(Start(3, 0, 8)))
        node = ray.get_runtime_context().get_node_id()
        born = psutil.Process(sleeper.pid).create_time()
        stuck = Beat(3, 0, sleeper.pid, born, node, "waiting", 99.0, is_training=True)
        watchdog = Watchdog(monitor, 10)
        watchdog.to_kill = kill_workers([replace(stuck, node="a" * 56)])
        assert watchdog.to_kill, "no such node"

        watchdog.to_kill = [stuck, replace(stuck, attempt=2, pid=os.getpid())]
        watchdog.check()

        assert sleeper.wait(timeout=10) == -signal.SIGKILL
        assert watchdog.to_kill == []
        ray.kill(monitor)


def test_a_process_that_has_gone_is_said_to_have_gone() -> None:
    (found,) = inspect_processes([(0, 2**22 + 1)])

    assert found.status == "gone"
    assert found.stack.startswith("no stack: ")
    assert isinstance(found, Inspection)


def beat_of(rank: int, doing: str, age_seconds: float, *, is_training: bool) -> Beat:
    return Beat(1, rank, 1, 0.0, "n", doing, age_seconds, is_training)


def test_ranks_are_not_silent_that_wait_for_one_whose_data_do_not_come() -> None:
    watchdog = Watchdog(None, 10)
    waits = beat_of(0, "waiting for data", 1.0, is_training=True)
    silent = beat_of(1, "step 5", 99.0, is_training=True)

    assert watchdog.patience_with([waits, silent])[1] > 1800
    assert watchdog.patience_with([replace(waits, age_seconds=11.0), silent])[1] == 10
    assert watchdog.patience_with([replace(waits, doing="step 5"), silent])[1] == 10
    assert watchdog.patience_with([replace(silent, is_training=False)])[1] > 1800


@pytest.mark.cluster
def test_a_rank_that_is_stopped_while_it_starts_is_found_as_one_that_trains(
    ray_cluster: Cluster, sleeper: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    with connected(ray_cluster):
        monitor = start_monitor(str(tmp_path), "1", on_this_node())
        ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
        node = ray.get_runtime_context().get_node_id()
        born = psutil.Process(sleeper.pid).create_time()
        beats = [
            Beat(1, 0, sleeper.pid, born, node, "starting", 0.0, is_training=False),
            Beat(1, 1, os.getpid(), 0.0, node, "starting", 0.0, is_training=False),
        ]
        for beat in beats:
            ray.get(monitor.beat.remote(beat))
        watchdog = Watchdog(monitor, 0.5)
        time.sleep(0.6)
        watchdog.check()
        assert ray.get(monitor.watched.remote()), "a start may be silent"

        os.kill(sleeper.pid, signal.SIGSTOP)
        wait_for_status(sleeper.pid, psutil.STATUS_STOPPED)
        watchdog.checked = watchdog.looked = 0.0
        watchdog.check()

        assert sleeper.wait(timeout=10) == -signal.SIGKILL
        _, (failure,) = ray.get(monitor.end_group.remote())
        assert (failure.cause, failure.rank) == (Cause.HANG, 0)
        ray.kill(monitor)
