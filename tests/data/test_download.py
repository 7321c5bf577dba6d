import email.utils
import os
import pickle
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from nanoray.config import DataError, StorageError
from nanoray.data.download import (
    LONGEST_RETRY_AFTER_SECONDS,
    Downloader,
    Patience,
    StoppedError,
    TryAgainError,
    own_part,
    part_file,
    put_in_place,
    retry_after_seconds,
)
from tests.hub import Fault, Hub, running_hub

NAME = "shard_00000.parquet"
IMPATIENT = Patience(
    stall_seconds=0.3, num_attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.02
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as running:
        yield running


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def downloader(said: list[str]) -> Iterator[Downloader]:
    made = Downloader(IMPATIENT, said.append)
    yield made
    made.close()


@pytest.fixture
def part(tmp_path: Path) -> str:
    path = tmp_path / f"{NAME}.part"
    path.touch()
    return str(path)


def fetch(hub: Hub, downloader: Downloader, part: str) -> bytes:
    downloader.fetch(f"{hub.url}/{NAME}", part, lambda arrived, of: None)
    return Path(part).read_bytes()


def test_a_file_comes_with_the_checksum_that_the_redirect_names(hub, downloader, part):
    shown: list[tuple[int, int | None]] = []

    remote = downloader.fetch(f"{hub.url}/{NAME}", part, lambda n, of: shown.append((n, of)))

    size = len(hub.shard(NAME))
    assert Path(part).read_bytes() == hub.shard(NAME)
    assert remote.num_bytes == size
    assert remote.sha256 is not None
    assert shown[-1] == (size, size)


def test_a_truncated_download_goes_on_where_it_stopped(hub, downloader, part):
    hub.faults[NAME] = Fault(ends_after=100_000)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == [None, "bytes=100000-"]


def test_a_part_of_an_earlier_process_is_continued(hub, downloader, part):
    Path(part).write_bytes(hub.shard(NAME)[:12_345])

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == ["bytes=12345-"]


def test_a_stalled_server_is_asked_again(hub, downloader, part, said):
    hub.faults[NAME] = Fault(stalls_after=50_000)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == [None, "bytes=50000-"]
    assert "nothing came for 0.3 s" in said[0]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again(hub, downloader, part, said, status):
    hub.faults[NAME] = Fault(times=2, status=status)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert len(hub.ranges(NAME)) == 3
    assert f"answered {status}" in said[0]


def test_retry_after_is_honoured(hub, downloader, part):
    hub.faults[NAME] = Fault(status=429, headers={"Retry-After": "1"})
    began = time.monotonic()

    fetch(hub, downloader, part)

    assert time.monotonic() - began >= 1


def test_retry_after_is_read_in_all_its_forms():
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)

    def read(**headers: str) -> float:
        return retry_after_seconds(
            httpx.Headers({k.replace("_", "-"): v for k, v in headers.items()})
        )

    assert read() == 0
    assert read(Retry_After="7") == 7
    assert read(Retry_After=in_a_minute) == pytest.approx(60, abs=2)
    assert read(Retry_After="soon") == 0
    assert read(Retry_After="86400") == LONGEST_RETRY_AFTER_SECONDS
    assert read(RateLimit='"resolvers";r=0;t=55') == 55


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_not_asked_again(hub, downloader, part, status):
    hub.faults[NAME] = Fault(times=9, status=status)

    with pytest.raises(
        DataError, match=f"{hub.url}/{NAME} cannot be fetched: .*{status}.*HF_ENDPOINT"
    ):
        fetch(hub, downloader, part)

    assert len(hub.ranges(NAME)) == 1


def test_attempts_that_bring_something_new_are_not_counted(hub, downloader, part):
    hub.faults[NAME] = Fault(times=100, ends_after=50_000)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert len(hub.ranges(NAME)) > IMPATIENT.num_attempts


def test_attempts_that_bring_nothing_are_counted_and_the_part_is_kept(hub, downloader, part):
    Path(part).write_bytes(hub.shard(NAME)[:1000])
    hub.faults[NAME] = Fault(times=100, status=503)

    with pytest.raises(DataError, match="503 Service Unavailable, 3 times in a row"):
        fetch(hub, downloader, part)

    assert os.path.getsize(part) == 1000


def test_a_server_without_ranges_is_read_from_the_start(hub, downloader, part):
    hub.faults[NAME] = Fault(times=9, ignores_range=True)
    Path(part).write_bytes(hub.shard(NAME)[:1000])

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == ["bytes=1000-"]


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(hub, downloader, part):
    hub.faults[NAME] = Fault(times=100, ends_after=50_000, ignores_range=True)

    with pytest.raises(DataError, match="3 times in a row"):
        fetch(hub, downloader, part)


def test_a_part_that_is_whole_is_not_fetched_again(hub, downloader, part):
    Path(part).write_bytes(hub.shard(NAME))

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == [f"bytes={len(content)}-"]


@pytest.mark.parametrize("leftover", [b"of another version", b"x" * 10_000_000])
def test_a_part_of_another_file_is_fetched_anew(hub, downloader, part, leftover):
    Path(part).write_bytes(leftover)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)


def test_wrong_bytes_are_fetched_anew_once(hub, downloader, part, said):
    hub.faults[NAME] = Fault(wrong_bytes=True)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert "SHA-256" in said[0]


def test_wrong_bytes_are_refused_and_nothing_is_left(hub, downloader, part):
    hub.faults[NAME] = Fault(times=9, wrong_bytes=True)

    with pytest.raises(DataError, match="came out wrong twice"):
        fetch(hub, downloader, part)

    assert hub.ranges(NAME) == [None, None]
    assert not os.path.exists(part)


def test_without_a_checksum_the_size_is_verified(hub, downloader, part):
    hub.names_checksums = False
    hub.faults[NAME] = Fault(ends_after=1000)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)
    assert hub.ranges(NAME) == [None, "bytes=1000-"]


def test_without_a_checksum_what_is_no_parquet_file_is_refused(hub, downloader, part):
    hub.names_checksums = False
    hub.shards[NAME] = b"<html>Please log in to this network.</html>"

    with pytest.raises(DataError, match="it is no parquet file"):
        fetch(hub, downloader, part)

    assert not os.path.exists(part)


def test_a_part_whose_length_nobody_knows_is_fetched_anew(hub, downloader, part):
    hub.names_checksums = False
    hub.faults[NAME] = Fault(no_length=True)
    Path(part).write_bytes(b"x" * 10_000_000)

    content = fetch(hub, downloader, part)

    assert content == hub.shard(NAME)


def test_nobody_at_the_address_is_an_error_of_the_data(downloader, part):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]

    with pytest.raises(DataError, match=f"http://127.0.0.1:{port}/x could not be fetched"):
        downloader.fetch(f"http://127.0.0.1:{port}/x", part, lambda arrived, of: None)


def test_a_full_disk_is_an_error_of_the_storage(hub, downloader, part):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    try:
        with pytest.raises(StorageError, match="cannot be written"):
            fetch(hub, downloader, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert os.path.getsize(part) <= 100_000


def test_asking_brings_size_and_checksum_without_the_file(hub, downloader):
    remote = downloader.ask(f"{hub.url}/{NAME}")

    assert remote.num_bytes == len(hub.shard(NAME))
    assert remote.sha256 is not None
    assert hub.ranges(NAME) == ["bytes=0-0"]


def test_a_stop_ends_the_waiting_between_attempts(hub, part):
    patient = Downloader(Patience(first_wait_seconds=60), lambda line: stopping.start())
    stopping = threading.Thread(target=patient.stop.set)
    hub.faults[NAME] = Fault(times=9, status=503)
    began = time.monotonic()

    with pytest.raises(StoppedError):
        fetch(hub, patient, part)

    assert time.monotonic() - began < 5
    stopping.join()
    patient.close()


def test_only_one_at_a_time_owns_a_part(tmp_path, said):
    part, stop, order = str(tmp_path / "folder" / "a.part"), threading.Event(), []

    def wait_for_it() -> None:
        with own_part(part, stop, said.append):
            order.append("second")
            assert os.path.exists(part), "the first moved its own away"

    with own_part(part, stop, said.append):
        second = threading.Thread(target=wait_for_it)
        second.start()
        while not said:
            time.sleep(0.01)
        order.append("first")
        os.replace(part, tmp_path / "a")
    second.join()

    assert order == ["first", "second"]
    assert "another process is at a.part" in said[0]


def test_waiting_for_a_part_ends_when_told_to_stop(tmp_path):
    part, stop = str(tmp_path / "a.part"), threading.Event()

    with own_part(part, stop, print):
        stop.set()
        with pytest.raises(StoppedError), own_part(part, stop, print):
            pass


def test_a_part_is_beside_a_local_target_and_at_a_stable_place_for_a_remote_one(tmp_path):
    local, remote = LocalFileSystem(), MemoryFileSystem()

    assert part_file(local, f"{tmp_path}/a") == f"{tmp_path}/a.part"
    assert part_file(remote, "/folder/a") == part_file(remote, "/folder/a")
    assert os.path.dirname(part_file(remote, "/folder/a")) != os.path.dirname(
        part_file(remote, "/other/a")
    )


def test_a_storage_that_refuses_a_file_is_named(tmp_path, part):
    with pytest.raises(StorageError, match="nowhere/a cannot be written"):
        put_in_place(part, LocalFileSystem(), str(tmp_path / "nowhere" / "a"))

    assert os.path.exists(part)


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(TryAgainError("the server answered 503", 7.0)))

    assert (error.problem, error.after_seconds) == ("the server answered 503", 7.0)
