"""What tests of the cluster share."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

SLEEPER = """
import time

from nanoray.cluster.inspection import allow_inspection

def wait_in_a_collective():
    print("asked" if allow_inspection() else "nobody to ask", flush=True)
    time.sleep(600)

wait_in_a_collective()
"""


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[str]"]:
    """Start a process that hangs, and lets others look at it where the kernel has to be asked."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() in ("asked\n", "nobody to ask\n")
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
