import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.cluster.stacks import process_stack

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
SLEEPER = """
import time

from nanoray.cluster.stacks import allow_inspection

def wait_in_a_collective():
    print("asked" if allow_inspection() else "nobody to ask", flush=True)
    time.sleep(600)

wait_in_a_collective()
"""


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == ("asked\n" if YAMA.exists() else "nobody to ask\n")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_stack_names_the_function_in_which_a_process_hangs(
    sleeper: "subprocess.Popen[str]",
) -> None:
    # py-spy, another child of this process, is to the sleeper what it is to a rank: no ancestor.
    assert "wait_in_a_collective" in process_stack(sleeper.pid)


def test_a_process_that_has_gone_has_no_stack() -> None:
    assert process_stack(2**22 + 1).startswith("no stack: ")
