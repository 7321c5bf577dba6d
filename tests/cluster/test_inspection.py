import subprocess
import sys
from pathlib import Path

from nanoray.cluster.inspection import process_stack

YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
ASK = "from nanoray.cluster.inspection import allow_inspection; print(allow_inspection())"


def test_the_stack_names_the_function_in_which_a_process_hangs(
    sleeper: "subprocess.Popen[str]",
) -> None:
    # py-spy, another child of this process, is to the sleeper what it is to a rank: no ancestor.
    assert "wait_in_a_collective" in process_stack(sleeper.pid)


def test_the_kernel_is_asked_where_it_lets_only_ancestors_look() -> None:
    said = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)

    assert said.stdout == f"{YAMA.exists()}\n"


def test_a_process_that_has_gone_has_no_stack() -> None:
    assert process_stack(2**22 + 1).startswith("no stack: ")
