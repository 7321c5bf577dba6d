import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.ops.local_cluster import unnoted


@pytest.mark.parametrize("before", [None, "10.0.0.7:6379"])
def test_what_other_commands_find_stays_as_it_was(monkeypatch, tmp_path: Path, before):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    note = tmp_path / "ray" / "ray_current_cluster"
    if before is not None:
        note.write_text(before)

    with unnoted():
        note.write_text("127.0.0.1:1234")

    assert (note.read_text() if note.exists() else None) == before


WHERE = """
import psutil
import ray
import nanoray.cluster.connection as connection
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import find_monitor, start_monitor
from nanoray.data.blocks import Layout
from nanoray.data.feed import start_pacer
from nanoray.ops.local_cluster import LocalCluster
from nanoray.ops.spot_notice import drain_node
from tests.running import is_local, listeners

cluster = LocalCluster(3, 1)
connection.connect(cluster.address)
nodes = {node["NodeID"]: node for node in ray.nodes()}
for start in range(3):
    pacer = start_pacer(Layout(8, 4), 2, 1)
    found = [ray.get(start_monitor("runs/r", str(start), on_this_node()).node.remote())]
    where = lambda actor: ray.get_runtime_context().get_node_id()
    found.append(ray.get(pacer.__ray_call__.remote(where)))
    print(*("node:__internal_head__" in nodes[node]["Resources"] for node in found))
print(*(name for name, address in listeners(psutil.Process()) if not is_local(address)))
last = [node for node, told in nodes.items() if told["Resources"].get("CPU")][-1]
print(drain_node(ray.get_runtime_context().gcs_address, last, "a test", 60))
cluster.stop()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_what_a_run_depends_on_is_on_the_node_of_its_driver_and_nothing_listens_beyond_loopback():
    done = subprocess.run(
        [sys.executable, "-c", WHERE], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "True True\n" * 3 + "\n" + "None\n"
