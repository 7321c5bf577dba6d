"""Where the threads of another process stand: a rank lets py-spy look, and whoever asks runs it."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

DUMP_SECONDS = 10
"""How long py-spy may take for one process."""
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, -1
"""Of Linux' prctl.h."""


def allow_inspection() -> bool:
    """Let any process of the same user read this one; says whether the kernel had to be asked.

    Where it has Yama, as Ubuntu's has, only ancestors may read a process that has not allowed more.
    The task that runs py-spy is no ancestor of a rank: both are children of the raylet.
    """
    if sys.platform != "linux":
        return False
    everyone = ctypes.c_ulong(PR_SET_PTRACER_ANY)
    # Without Yama the kernel does not know the request (EINVAL), and there is nothing to allow.
    return ctypes.CDLL(None).prctl(PR_SET_PTRACER, everyone, 0, 0, 0) == 0


def process_stack(pid: int) -> str:
    """Dump the Python stacks of a process with py-spy, or say why that cannot be done."""
    beside = Path(sys.executable).with_name("py-spy")
    tool = str(beside) if beside.exists() else shutil.which("py-spy")
    if tool is None:
        return "no stack: py-spy is not installed"
    # Not pausing the process: one that is stopped already would never stop for py-spy.
    command = [tool, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DUMP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no stack: py-spy took over {DUMP_SECONDS} s"
    return done.stdout.strip() or f"no stack: {done.stderr.strip()}"
