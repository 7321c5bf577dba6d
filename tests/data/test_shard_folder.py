import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import httpx
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from nanoray.config import DataError, StorageError
from nanoray.data.download import Patience
from nanoray.data.manifest import make_manifest
from nanoray.data.shard_folder import FetchDisplay, ShardFolder
from tests.hub import Fault, Hub, running_hub

NAMES = [f"shard_{index:05d}.parquet" for index in range(6)]
IMPATIENT = Patience(
    stall_seconds=5.0, num_attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.02
)
FETCH = """
import sys
from nanoray.data.download import Patience
from nanoray.data.shard_folder import ShardFolder

storage, hub, *names = sys.argv[1:]
folder = ShardFolder(storage, "datasets/texts", 400e3)
folder.fetch({name: f"{hub}/{name}" for name in names}, Patience(first_wait_seconds=0.01))
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return ShardFolder(str(tmp_path), "datasets/texts", 400e3)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    # Else this bucket's part files are those of the same bucket in another run of the tests.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("NO_PROXY", "127.0.0.1"),
    ):
        monkeypatch.setenv(name, value)
    # All of moto's servers in a process share their buckets.
    httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
    s3fs.S3FileSystem.clear_instance_cache()
    fsspec.filesystem("s3").mkdir("texts")
    yield "s3://texts/runs"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def fetch(folder: ShardFolder, hub: Hub, names: list[str] = NAMES) -> str:
    lines = io.StringIO()
    folder.fetch({name: f"{hub.url}/{name}" for name in names}, IMPATIENT, lines)
    return lines.getvalue()


def start_fetch(storage: Path, hub: Hub, names: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, str(storage), hub.url, *names]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def test_shards_are_fetched_and_noted_with_their_checksums(hub, folder):
    lines = fetch(folder, hub)

    noted = json.loads(Path(folder.path("checksums.json")).read_text())["files"]
    assert sorted(noted) == NAMES
    for name in NAMES:
        content = Path(folder.path(name)).read_bytes()
        assert content == hub.shard(name)
        digest = hashlib.sha256(content).hexdigest()
        assert noted[name] == {"bytes": len(content), "sha256": digest}
    assert sorted(os.listdir(folder.root)) == ["checksums.json", *NAMES], "something was left over"
    assert len(lines.splitlines()) == len(NAMES)
    assert "6 of 6" in lines


def test_second_fetch_asks_for_nothing(hub, folder):
    fetch(folder, hub)
    before = hub.num_requests

    fetch(folder, hub)

    assert hub.num_requests == before


def test_a_shard_of_another_size_is_fetched_again(hub, folder):
    fetch(folder, hub)
    os.truncate(folder.path(NAMES[2]), 1000)

    fetch(folder, hub)

    assert Path(folder.path(NAMES[2])).read_bytes() == hub.shard(NAMES[2])
    assert [len(hub.ranges(name)) for name in NAMES] == [1, 1, 2, 1, 1, 1]


def test_a_shard_that_came_by_other_hands_is_verified_and_not_fetched(hub, folder):
    os.makedirs(folder.root)
    Path(folder.path(NAMES[0])).write_bytes(hub.shard(NAMES[0]))
    Path(folder.path(NAMES[1])).write_bytes(hub.shard(NAMES[1])[:-1] + b"?")

    fetch(folder, hub, NAMES[:2])

    assert hub.ranges(NAMES[0]) == ["bytes=0-0"]
    assert hub.ranges(NAMES[1]) == ["bytes=0-0", None]
    assert Path(folder.path(NAMES[1])).read_bytes() == hub.shard(NAMES[1])
    assert folder.missing(NAMES[:2]) == []


def test_one_bad_shard_ends_the_fetch_and_the_good_ones_stay(hub, folder):
    hub.faults[NAMES[5]] = Fault(times=9, status=404)

    with pytest.raises(DataError, match=NAMES[5]):
        fetch(folder, hub)

    assert NAMES[5] in folder.missing(NAMES)
    assert NAMES[0] not in folder.missing(NAMES)


def test_wrong_bytes_are_not_put_in_place(hub, folder):
    hub.faults[NAMES[0]] = Fault(times=9, wrong_bytes=True)

    with pytest.raises(DataError, match="came out wrong"):
        fetch(folder, hub, NAMES[:1])

    assert os.listdir(folder.root) == []


def test_an_interrupted_fetch_resumes_in_a_new_process(hub, folder, tmp_path):
    hub.faults[NAMES[0]] = Fault(stalls_after=200_000)
    process = start_fetch(tmp_path, hub, NAMES[:1])
    part = folder.part(NAMES[0])
    wait_until(lambda: size_of(part) >= 190_000)

    process.send_signal(signal.SIGKILL)
    process.communicate()
    arrived = size_of(part)
    fetch(folder, hub, NAMES[:1])

    assert hub.ranges(NAMES[0]) == [None, f"bytes={arrived}-"]
    assert Path(folder.path(NAMES[0])).read_bytes() == hub.shard(NAMES[0])


def test_ctrl_c_ends_a_fetch_at_once_and_keeps_what_has_arrived(hub, folder, tmp_path):
    for name in NAMES:
        hub.faults[name] = Fault(stalls_after=200_000)
    process = start_fetch(tmp_path, hub, NAMES)
    wait_until(lambda: all(size_of(folder.part(name)) >= 190_000 for name in NAMES[:4]))
    began = time.monotonic()

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)

    assert time.monotonic() - began < 5
    assert process.returncode != 0
    assert "what has arrived is kept" in stderr
    assert size_of(folder.part(NAMES[0])) >= 190_000


def test_two_processes_fetch_each_shard_once(hub, folder, tmp_path):
    for name in NAMES:
        hub.faults[name] = Fault(ends_after=100_000)

    processes = [start_fetch(tmp_path, hub, NAMES) for _ in range(2)]
    outputs = [process.communicate(timeout=30)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(Path(folder.path(name)).read_bytes() == hub.shard(name) for name in NAMES)
    assert all(hub.ranges(name).count(None) == 1 for name in NAMES)
    assert not [name for name in os.listdir(folder.root) if name.endswith(".part")]


def test_shards_are_put_on_s3(hub, bucket):
    folder = ShardFolder(bucket, "datasets/texts", 400e3)
    hub.faults[NAMES[1]] = Fault(ends_after=100_000)

    fetch(folder, hub, NAMES[:3])
    before = hub.num_requests
    fetch(folder, hub, NAMES[:3])

    assert hub.num_requests == before
    assert folder.fs.cat_file(folder.path(NAMES[1])) == hub.shard(NAMES[1])
    assert make_manifest(folder.address, "text").validation_shard == NAMES[2]
    assert not os.path.exists(folder.part(NAMES[1]))


def test_a_shard_on_s3_without_a_note_is_verified_there(hub, bucket):
    folder = ShardFolder(bucket, "datasets/texts", 400e3)
    folder.fs.pipe_file(folder.path(NAMES[0]), hub.shard(NAMES[0]))

    fetch(folder, hub, NAMES[:1])

    assert hub.ranges(NAMES[0]) == ["bytes=0-0"]
    assert folder.missing(NAMES[:1]) == []


def test_a_bucket_that_is_not_there_is_an_error_of_the_storage(hub, bucket):
    folder = ShardFolder("s3://nowhere/runs", "datasets/texts", 400e3)

    with pytest.raises(StorageError, match="s3://nowhere/runs cannot be written"):
        fetch(folder, hub)


def test_too_little_space_is_told_before_the_fetch(hub, tmp_path):
    folder = ShardFolder(str(tmp_path), "datasets/texts", 1e18)

    with pytest.raises(StorageError, match=r"GB free, and 6 more shards need 6000000000\.0 GB"):
        fetch(folder, hub)

    assert hub.num_requests == 0


def test_what_has_arrived_needs_no_more_space(folder):
    os.makedirs(folder.root)
    Path(folder.part(NAMES[0])).write_bytes(b"x" * 100_000)

    assert folder.need_bytes(NAMES[:2]) == 700_000


def test_a_record_that_is_no_json_is_not_overwritten(hub, folder):
    os.makedirs(folder.root)
    Path(folder.path("checksums.json")).write_text("{")

    with pytest.raises(StorageError, match=r"checksums.json is not JSON"):
        fetch(folder, hub)

    assert Path(folder.path("checksums.json")).read_text() == "{"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_sum_speed_and_time_left(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal = Terminal()
    display = FetchDisplay({"a": 0, "b": 4_000_000}, 8e6, terminal)

    display.show("a", 6_000_000, 6_000_000)
    display.finish("a")
    display.close()

    shown = terminal.getvalue()
    assert "1/2 shards" in shown
    assert "10.0/14.0 MB" in shown
    assert "the first shard is there" in shown


def test_a_shard_that_was_there_does_not_count_as_fetched():
    lines = io.StringIO()
    display = FetchDisplay({"a": 0, "b": 0}, 8e6, lines)

    display.leave_out("a")
    display.finish("a")

    assert "a is there, 1 of 2" in lines.getvalue()
    assert "MB/s" not in lines.getvalue()
    assert (display.total, display.total_arrived) == (8e6, 0)
