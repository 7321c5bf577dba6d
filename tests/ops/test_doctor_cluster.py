import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.ops.doctor_cluster import last_line, not_started

ROOT = Path(__file__).parents[2]

TWO_NODES = """
import os
os.environ["RAY_AUTH_MODE"] = "disabled"
import nanoray.cluster.connection as connection
from nanoray.ops.doctor_cluster import Questions, ask_nodes, living_nodes, measure, needs_token
from nanoray.ops.doctor_cluster import probe_step
from nanoray.ops.local_cluster import LocalCluster
from tests.ops.test_doctor_memory import recipe

cluster = LocalCluster(2, 1)
connection.connect(cluster.address)
nodes = living_nodes()
print("trains", sorted(node.trains for node in nodes), len({node.name for node in nodes}))
print("token", needs_token())
answers = ask_nodes(nodes, Questions(None, None))
print("answers", sorted(answers) == sorted(node.name for node in nodes))
print("temp", {node.temp_folder for node in nodes})
speeds = measure(nodes)
print("problem", speeds.problem)
print("flops", sorted(map(len, speeds.flops.values())))
print("inside", [each.num_ranks for each in speeds.inside.values()])
print("between", speeds.between and speeds.between.num_ranks)
step = probe_step([node for node in nodes if node.trains][0], recipe(4), eager=True, threads=1)
print("step", step.fits, step.peak_bytes > 0)
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_nodes_without_a_token_are_asked_and_measured():
    """A head that trains nothing and two nodes; the tasks reserve no CPU of theirs."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    printed = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert printed == {
        "trains": "[False, True, True] 3",
        "token": "False",
        "answers": "True",
        "temp": "{'/tmp/ray'}",
        "problem": "None",
        "flops": "[1, 1]",
        "inside": "[2, 2]",
        "between": "2",
        "step": "True True",
    }


def test_of_an_error_of_ray_the_last_line_is_told():
    error = RuntimeError("ray::answer() (pid=1)\n  File x\nOSError: [Errno 116] Stale file handle")

    assert last_line(error) == "OSError: [Errno 116] Stale file handle"
    assert last_line(RuntimeError()) == "RuntimeError"


def test_bench_workers_that_do_not_start_on_free_gpus_are_a_problem_of_their_nodes():
    speeds = not_started({"a": 8, "b": 8, "c": 8}, ["a"] * 8 + ["b"] * 6 + ["c"] * 7)

    assert not speeds.is_busy
    assert speeds.problem == "3 of 24 bench workers did not start in 30 s: 2 on b, 1 on c"
