import os
import signal
import subprocess
import time

import psutil

from nanoray.cluster.watchdog import (
    Inspection,
    inspect_processes,
    kill_processes,
    process_status,
)


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
    kill_processes([(2**22 + 1, 1.0), (sleeper.pid, born - 2)])  # the clock was set meanwhile

    assert sleeper.wait(timeout=10) == -signal.SIGKILL


def test_a_process_that_has_gone_is_said_to_have_gone() -> None:
    (found,) = inspect_processes([(0, 2**22 + 1)])

    assert found.status == "gone"
    assert found.stack.startswith("no stack: ")
    assert isinstance(found, Inspection)
