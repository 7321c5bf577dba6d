"""A run whose text and checkpoints are on an object store is like one on a disk."""

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from nanoray.storage import RunFolder
from nanoray.train import checkpoint_files
from tests.running import (
    TINY,
    Cluster,
    kill_job,
    read_run,
    run_job,
    small_corpus,
    start_cluster,
    start_job,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 50
FLAGS = ("--num-steps", STEPS, "--save-every", 10, "--validate-every", 25, "--num-workers", 2)
BUCKET = "s3://bucket"


@dataclass(frozen=True)
class Store:
    """An object store, and a cluster whose processes have its address and keys."""

    cluster: Cluster
    fs: s3fs.S3FileSystem
    folder: Path
    """What is on the local disk."""

    def start(self, run: str) -> "subprocess.Popen[str]":
        """Start a run, or go on with it."""
        return start_job("pretrain.py", *self.command(run), env=self.cluster.environment())

    def finish(self, run: str) -> str:
        """Run a job to its end; gives what it printed."""
        code, output = run_job("pretrain.py", *self.command(run), env=self.cluster.environment())
        assert code == 0, output
        return output

    def command(self, run: str) -> list[object]:
        places = ("--storage", f"{BUCKET}/runs", "--data", f"{BUCKET}/text")
        return ["--run", run, *places, *FLAGS, *TINY]

    def checkpoints(self, run: str) -> str:
        return f"{BUCKET}/runs/{run}/pretrain/checkpoints"

    def committed(self, run: str) -> list[int]:
        """List the steps that have their manifest."""
        found = self.fs.glob(f"{self.checkpoints(run)}/step_*/manifest.json")
        return sorted(int(str(path).split("/")[-2].removeprefix("step_")) for path in found)

    def read(self, run: str) -> dict[str, Any]:
        """Fetch a run, and read what must be equal between two of the same config."""
        self.fs.get(f"{BUCKET}/runs/{run}", str(self.folder / "fetched" / run), recursive=True)
        return read_run(self.folder / "fetched", run)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Start both, with the text in the bucket."""
    folder = tmp_path_factory.mktemp("local")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    httpx.post(f"{url}/moto-api/reset", trust_env=False).raise_for_status()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        s3fs.S3FileSystem.clear_instance_cache()
        fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        fs.mkdir("bucket")
        fs.put(str(small_corpus(folder / "text")), f"{BUCKET}/text/text.parquet")
        # Ray keeps the CPUs of a killed run reserved for three minutes: the next one needs others.
        cluster = start_cluster(num_cpus=8)
        yield Store(cluster, fs, folder)
        cluster.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def calm(store: Store) -> dict[str, Any]:
    """Give the run that nobody disturbed, made on the local disk."""
    places = ("--run", "calm", "--storage", store.folder, "--data", store.folder / "text")
    code, output = run_job("pretrain.py", *places, *FLAGS, *TINY, env=store.cluster.environment())
    assert code == 0, output
    return read_run(store.folder, "calm")


def kill_after(store: Store, run: str, step: int) -> list[int]:
    """Start a run and kill it as soon as it has saved a step; gives the steps that it has saved."""
    process = store.start(run)
    deadline = time.monotonic() + 240
    while not store.committed(run) or store.committed(run)[-1] < step:
        assert time.monotonic() < deadline, f"step {step} was not saved:\n{kill_job(process)}"
        assert process.poll() is None, f"the job ended early:\n{process.communicate()[0]}"
        time.sleep(0.5)
    kill_job(process)
    committed = store.committed(run)
    assert committed[-1] < STEPS, "the run ended before it was killed"
    return committed


def zero_4_kilobytes(store: Store, path: str) -> None:
    """Zero one block in the middle of an object."""
    content = bytearray(store.fs.cat_file(path))
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    store.fs.pipe_file(path, bytes(content))


def test_a_run_on_s3_leaves_there_what_one_on_a_disk_leaves(store: Store) -> None:
    flags = ["--num-steps", 8, "--save-every", 4, "--validate-every", 8, "--num-workers", 1, *TINY]
    env = store.cluster.environment()
    on_s3 = ("--storage", f"{BUCKET}/runs", "--data", f"{BUCKET}/text")
    on_disk = ("--storage", store.folder, "--data", store.folder / "text")

    for places in (on_s3, on_disk):
        code, output = run_job("pretrain.py", "--run", "short", *places, *flags, env=env)
        assert code == 0, output

    assert store.read("short") == read_run(store.folder, "short")
    assert store.committed("short") == [4, 8]
    stage = f"{BUCKET}/runs/short/pretrain"
    assert store.fs.cat_file(f"{stage}/loss.png").startswith(b"\x89PNG")
    assert b"short / pretrain" in store.fs.cat_file(f"{stage}/report.html")


def test_a_run_on_s3_that_was_killed_equals_an_undisturbed_one_on_a_disk(store, calm):
    newest = kill_after(store, "killed", 10)[-1]

    output = store.finish("killed")

    assert "training a tokenizer" not in output
    assert f"from the checkpoint of step {newest}\n" in output
    assert store.read("killed") == calm


def test_what_is_moved_aside_on_s3_is_there_with_all_its_objects(store):
    stage = RunFolder(f"{BUCKET}/runs", "old").stage("pretrain")
    stage.write_config({"depth": 1})
    store.fs.pipe_file(stage.path("checkpoints", "step_000001", "state.json"), b"{}")

    moved = stage.move_aside()

    assert moved is not None
    assert store.fs.find(stage.path()) == []
    assert [str(path).removeprefix(moved) for path in store.fs.find(moved)] == [
        "/checkpoints/step_000001/state.json",
        "/config.json",
    ]


def test_a_checkpoint_on_s3_is_moved_aside_with_all_its_objects(store):
    stage = RunFolder(f"{BUCKET}/runs", "hurt-one").stage("pretrain")
    store.fs.pipe_file(stage.path("checkpoints", "step_000001", "state.json"), b"{}")

    moved = checkpoint_files.move_aside(stage, 1, "damaged")

    assert [str(path) for path in store.fs.find(stage.path())] == [f"{moved}/state.json"]


def test_a_damaged_checkpoint_on_s3_is_passed_over_with_one_warning(store, calm):
    before, newest = kill_after(store, "hurt", 20)[-2:]
    damaged = f"{store.checkpoints('hurt')}/step_{newest:06d}"
    zero_4_kilobytes(store, f"{damaged}/model.safetensors")

    output = store.finish("hurt")

    assert output.count("is damaged") == 1
    assert f"from the checkpoint of step {before}\n" in output
    moved = [str(path) for path in store.fs.ls(f"{store.checkpoints('hurt')}/damaged")]
    assert [path.split("/")[-1].partition("-")[0] for path in moved] == [f"step_{newest:06d}"]
    assert store.read("hurt") == calm
