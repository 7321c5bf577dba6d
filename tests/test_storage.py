import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from nanoray.config import FORMAT_VERSION, RunReplacedError, StorageError
from nanoray.storage import (
    RunFolder,
    list_folder,
    open_location,
    read_json,
    write_file,
    write_json,
)

LOCAL = LocalFileSystem()

WRITE_FOREVER = """
import itertools, sys
from fsspec.implementations.local import LocalFileSystem
from nanoray.storage import write_file

for letter in itertools.cycle((b"a", b"b")):
    write_file(LocalFileSystem(), sys.argv[1], letter * 1_000_000)
"""

WRITE_TO_A_FULL_DISK = """
import resource, sys
from fsspec.implementations.local import LocalFileSystem
from nanoray.storage import write_file

# A file that grows past this limit gets the error that a full disk gives, by another number.
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_file(LocalFileSystem(), sys.argv[1], b"b" * 1_000_000)
"""


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A storage address on a disk, and on a filesystem that is none."""
    if request.param == "local":
        yield str(tmp_path / "runs")
    else:
        memory = MemoryFileSystem(skip_instance_cache=True)
        yield "memory://runs"
        if memory.exists("/runs"):
            memory.rm("/runs", recursive=True)


def test_a_written_file_is_read_back(storage: str) -> None:
    fs, base = open_location(storage)

    write_file(fs, f"{base}/deep/down/file.bin", b"\x00\xffcontent")

    assert fs.cat_file(f"{base}/deep/down/file.bin") == b"\x00\xffcontent"
    assert list_folder(fs, f"{base}/deep/down") == ["file.bin"]


def test_a_file_is_whole_at_every_moment_and_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)])
    seen: set[bytes] = set()

    deadline = time.monotonic() + 30
    while len(seen) < 2 and time.monotonic() < deadline:
        if path.exists():
            seen.add(path.read_bytes())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    seen.add(path.read_bytes())

    assert seen == {b"a" * 1_000_000, b"b" * 1_000_000}


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(LOCAL, str(path), b"old")

    done = subprocess.run(
        [sys.executable, "-c", WRITE_TO_A_FULL_DISK, str(path)], capture_output=True, text=True
    )

    assert "File too large" in done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_content_and_is_one_sentence(small_disk: Path) -> None:
    write_file(LOCAL, f"{small_disk}/file", b"old")
    run = RunFolder(str(small_disk), "demo")

    with pytest.raises(OSError, match="No space left"):
        write_file(LOCAL, f"{small_disk}/file", b"b" * 1_000_000)
    left = {name: (small_disk / name).read_bytes() for name in os.listdir(small_disk)}
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"f" * 4096)
    with pytest.raises(StorageError) as caught:
        run.check_writable(need_bytes=1)

    assert left == {"file": b"old"}
    assert str(caught.value).startswith(f"--storage {small_disk} cannot be written (")
    assert "No space left on device" in str(caught.value)


def test_json_carries_its_format_version_first(storage: str) -> None:
    fs, base = open_location(storage)

    write_json(fs, f"{base}/a.json", {"name": "é", "values": [1, None]})

    content = fs.cat_file(f"{base}/a.json").decode()
    assert next(iter(json.loads(content))) == "format_version"
    assert read_json(fs, f"{base}/a.json") == {
        "format_version": FORMAT_VERSION,
        "name": "é",
        "values": [1, None],
    }


def test_json_that_is_not_there_is_none(storage: str) -> None:
    fs, base = open_location(storage)

    value = read_json(fs, f"{base}/nowhere/a.json")

    assert value is None


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[1, 2]", b"null", b"3"])
def test_damaged_json_names_its_file_and_the_remedy(storage: str, content: bytes) -> None:
    fs, base = open_location(storage)
    write_file(fs, f"{base}/a.json", content)

    with pytest.raises(StorageError) as caught:
        read_json(fs, f"{base}/a.json")

    assert f"{base}/a.json" in str(caught.value)
    assert "Restore it, or move it aside." in str(caught.value)


def test_a_folder_lists_names_in_order_without_what_is_below(storage: str) -> None:
    fs, base = open_location(storage)
    for name in ("b.json", "a/deep/file", ".hidden", "a.json"):
        write_file(fs, f"{base}/{name}", b"x")

    names = list_folder(fs, base)

    assert names == [".hidden", "a", "a.json", "b.json"]


def test_a_folder_that_is_not_there_is_empty(storage: str) -> None:
    fs, base = open_location(storage)

    names = list_folder(fs, f"{base}/nowhere")

    assert names == []


def test_a_file_that_another_process_wrote_is_listed(tmp_path: Path) -> None:
    fs, base = open_location(str(tmp_path))
    before = list_folder(fs, base)

    (tmp_path / "step_000100").mkdir()

    assert (before, list_folder(fs, base)) == ([], ["step_000100"])


def test_attempts_increase_and_say_where_they_start(storage: str) -> None:
    first = RunFolder(storage, "demo").begin_attempt("pretrain")
    RunFolder(storage, "demo").record_start(first, 300)

    second = RunFolder(storage, "demo").begin_attempt("pretrain")

    state = RunFolder(storage, "demo").read_state()
    assert second == 2
    assert (state["attempt"], state["stage"], state["start_step"]) == (2, "pretrain", 300)
    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        RunFolder(storage, "demo").record_start(first, 400)
    RunFolder(storage, "demo").begin_attempt("sft")
    assert RunFolder(storage, "demo").read_state()["start_step"] == 0, "of another stage"


def test_a_driver_takes_a_run_over_and_does_not_take_it_back(storage: str) -> None:
    run = RunFolder(storage, "demo")
    attempts = [run.begin_attempt("pretrain", "process 1 on a")]
    attempts.append(run.begin_attempt("pretrain", "process 1 on a", after=attempts[-1]))
    attempts.append(run.begin_attempt("pretrain", "process 2 on b"))

    with pytest.raises(RunReplacedError) as raised:
        run.begin_attempt("pretrain", "process 1 on a", after=attempts[1])

    assert attempts == [1, 2, 3]
    assert str(raised.value) == (
        f"{run}: attempt 3 has replaced attempt 2, which saves nothing any more. It belongs to "
        "process 2 on b and goes on with the run: give this command again only when that one has "
        "ended."
    )
    assert run.read_state()["attempt"] == 3
    assert run.begin_attempt("pretrain", "process 2 on b", after=3) == 4


def test_of_two_drivers_that_take_the_same_number_one_has_the_run(storage: str) -> None:
    run = RunFolder(storage, "demo")
    ours = run.begin_attempt("pretrain", "process 1 on a")
    state = run.read_state()
    write_json(run.fs, run.path("run.json"), {**state, "driver": "process 2 on b"})

    run.check_attempt(ours, "process 2 on b")
    with pytest.raises(RunReplacedError, match="process 2 on b"):
        run.check_attempt(ours, "process 1 on a")


def test_storage_that_knows_no_attempt_so_new_is_not_that_of_the_run(storage: str) -> None:
    run = RunFolder(storage, "demo")
    run.begin_attempt("pretrain")

    with pytest.raises(OSError, match="it has no attempt 2 there, only 1"):
        run.check_attempt(2)


def test_stages_are_done_once_and_can_begin_anew(storage: str) -> None:
    run = RunFolder(storage, "demo")
    for stage in ("pretrain", "sft", "pretrain"):
        run.mark_done(stage)
    done = run.read_state()["stages_done"]

    run.forget_stage("sft")

    assert done == ["sft", "pretrain"]
    assert run.read_state()["stages_done"] == ["pretrain"]


def test_a_run_that_has_not_begun_has_no_state(storage: str) -> None:
    run = RunFolder(storage, "demo")

    state, config = run.read_state(), run.stage("pretrain").read_config()

    assert (state, config) == ({}, None)


def test_moving_a_stage_aside_keeps_its_files_and_frees_its_name(storage: str) -> None:
    stage = RunFolder(storage, "demo").stage("pretrain")
    stage.write_config({"depth": 4})
    write_file(stage.fs, stage.path("checkpoints", "step_000001", "state.json"), b"{}")

    aside = stage.move_aside()

    assert aside is not None
    assert stage.read_config() is None
    assert not stage.fs.exists(stage.path())
    assert (read_json(stage.fs, f"{aside}/config.json") or {})["depth"] == 4
    assert stage.fs.cat_file(f"{aside}/checkpoints/step_000001/state.json") == b"{}"


def test_moving_aside_twice_in_a_second_keeps_both(storage: str) -> None:
    stage = RunFolder(storage, "demo").stage("pretrain")
    names = []
    for depth in (4, 5):
        stage.write_config({"depth": depth})
        names.append(stage.move_aside())

    depths = [(read_json(stage.fs, f"{name}/config.json") or {})["depth"] for name in names]

    assert depths == [4, 5]


def test_there_is_nothing_to_move_aside_before_a_stage_began(storage: str) -> None:
    stage = RunFolder(storage, "demo").stage("pretrain")

    aside = stage.move_aside()

    assert aside is None


def test_a_run_folder_is_shown_as_it_was_given(tmp_path: Path) -> None:
    local = RunFolder(str(tmp_path), "demo").stage("pretrain")
    remote = RunFolder("s3://bucket/runs/", "demo").stage("pretrain")

    assert str(local) == f"{tmp_path}/demo/pretrain"
    assert str(remote) == "s3://bucket/runs/demo/pretrain"


def test_addresses_keep_both_slashes() -> None:
    fs, path = open_location("s3://bucket/runs")

    assert "s3" in fs.protocol
    assert path == "bucket/runs"


def test_listings_of_an_object_store_are_read_anew_each_time() -> None:
    fs, _ = open_location("s3://bucket/runs")

    # A cached one would hide what another process has just written.
    assert not fs.dircache.use_listings_cache


def test_a_relative_folder_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    _, path = open_location("runs")

    assert path == f"{tmp_path}/runs"


def test_an_unknown_protocol_is_named_with_those_that_exist() -> None:
    with pytest.raises(StorageError) as caught:
        open_location("s4://bucket/runs")

    assert str(caught.value) == (
        "s4://bucket/runs has the unknown protocol 's4'. Give a folder, or s3://..., gs://..."
    )


def test_a_protocol_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)  # as if it were not installed

    with pytest.raises(StorageError) as caught:
        open_location("abfs://container/runs")

    assert "pip install adlfs" in str(caught.value)


def test_a_storage_that_can_be_written_is_left_as_it_was(storage: str) -> None:
    run = RunFolder(storage, "demo")

    run.check_writable(need_bytes=1000)

    assert list_folder(run.fs, run.root) == []


def test_a_storage_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    run = RunFolder(str(tmp_path / "file" / "runs"), "demo")

    with pytest.raises(StorageError) as caught:
        run.check_writable(need_bytes=1000)

    assert f"--storage {tmp_path}/file/runs cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    run = RunFolder(str(tmp_path), "demo")

    with pytest.raises(StorageError, match=r"cannot be written.*Permission denied"):
        run.check_writable(need_bytes=1000)


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="needs a filesystem without files")
def test_a_filesystem_that_takes_no_files_is_one_sentence() -> None:
    run = RunFolder("/proc/nanoray", "demo")

    with pytest.raises(StorageError, match="--storage /proc/nanoray cannot be written"):
        run.check_writable(need_bytes=1000)


def test_too_little_space_is_told_before_the_run_begins(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path), "demo")
    free = shutil.disk_usage(tmp_path).free

    with pytest.raises(StorageError) as caught:
        run.check_writable(need_bytes=free + 10**15)

    assert "GB free and the run needs 1000" in str(caught.value)
    assert "lower --keep-last" in str(caught.value)


def test_looking_whether_a_storage_can_be_written_leaves_no_folder(tmp_path):
    (tmp_path / "kept").mkdir()

    RunFolder(str(tmp_path / "kept" / "new" / "runs"), "r").check_writable(need_bytes=1000)

    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
