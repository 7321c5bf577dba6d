"""Peak memory of every kind of process stays the same when the corpus is ten times as large."""

import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.running import TINY, Cluster, process_title, run_job, start_job

TEXT = Path(__file__).parents[3] / "shared" / "data" / "text"
KINDS = {"ray::RayTrainWorker": "workers", "ray::MapBatches": "readers", "ray::": "rest of Ray"}
COPIES = 10

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(not TEXT.exists(), reason=f"the texts are not at {TEXT}"),
]


def own_bytes(process: psutil.Process) -> int:
    """Give what a process has resident for itself alone: shared memory would count many times."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def watch_memory(cluster: Cluster, job: "subprocess.Popen[str]") -> dict[str, int]:
    """Give the most bytes that a process of each kind had until the job ended."""
    peak: dict[str, int] = defaultdict(int)
    while job.poll() is None:
        family = psutil.Process(cluster.holder.pid).children(recursive=True)
        for process in [psutil.Process(job.pid), *family]:
            title = process_title(process)
            kind = next((kind for sign, kind in KINDS.items() if title.startswith(sign)), None)
            kind = "driver" if process.pid == job.pid else kind
            try:
                if kind:
                    peak[kind] = max(peak[kind], own_bytes(process))
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    return dict(peak)


def test_memory_does_not_grow_with_the_corpus(ray_cluster: Cluster, tmp_path: Path) -> None:
    tenfold = tmp_path / "tenfold"
    tenfold.mkdir()
    for file in TEXT.glob("*.parquet"):
        for copy in range(COPIES):
            shutil.copy(file, tenfold / f"{file.stem}-{copy}.parquet")
    one_group = tmp_path / "one-group"
    one_group.mkdir()
    table = pa.concat_tables(pq.read_table(file) for file in sorted(TEXT.glob("*.parquet")))
    pq.write_table(table, one_group / "a.parquet", row_group_size=len(table))
    env, tokenizer = ray_cluster.environment(), tmp_path / "tokenizer.json"
    learn = ("--data", TEXT, "--vocab-size", 400, "--max-chars", 1_000_000, "--output", tokenizer)
    code, output = run_job("tokenizer.py", *learn, env=env)
    assert code == 0, output

    peaks = []
    for name, data in (("once", TEXT), ("ten times", tenfold), ("one row group", one_group)):
        flags = ["--run", name.replace(" ", "-"), "--storage", tmp_path, "--data", data, *TINY]
        flags += ["--tokenizer", tokenizer, "--num-steps", 150, "--num-workers", 2]
        job = start_job("pretrain.py", *flags, env=env)
        peaks.append(watch_memory(ray_cluster, job))
        output, _ = job.communicate()
        assert job.returncode == 0, output

    for kind in ("driver", "workers", "readers"):
        once, ten_times, in_one = (peak[kind] / 2**20 for peak in peaks)
        print(f"{kind}: {once:.0f} MiB, ten times {ten_times:.0f}, in one row group {in_one:.0f}")
        # The corpus grows by 540 MB. Two runs of the same differ by up to a tenth: Python's
        # allocator, and which tasks happen to share a process.
        assert max(ten_times, in_one) < 1.15 * once + 30
