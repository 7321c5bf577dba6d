import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from nanoray import storage
from nanoray.storage import StageFolder, list_folder, with_patience
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.checkpoint_files import (
    LocalFiles,
    OptimizerFiles,
    committed_steps,
    describe_file,
    find_damage,
    first_step,
    load_weights,
    move_aside,
    newest_verified_step,
    step_name,
)
from nanoray.train.world import LocalWorld
from tests.train.ranks import GroupWorld
from tests.train.tiny_run import scramble, tiny_model, tiny_state

OPTIMIZER_FILE = "optimizer-00000-of-00001.safetensors"


def save_steps(folder: StageFolder, steps: list[int]) -> None:
    attempt = folder.run.begin_attempt("pretrain")
    checkpointer = Checkpointer(
        folder, LocalWorld(), attempt=attempt, facts={}, policy=SavePolicy(keep_last=9)
    )
    state = tiny_state()
    scramble(state, seed=0)
    for step in steps:
        state.step = step
        checkpointer.save(state)
    checkpointer.wait()


def file_of(folder: StageFolder, step: int, name: str) -> str:
    return folder.path("checkpoints", step_name(step), name)


def change(folder: StageFolder, step: int, name: str, damage: Callable[[bytes], bytes]) -> None:
    path = file_of(folder, step, name)
    content = damage(folder.fs.cat_file(path))
    folder.fs.rm_file(path)
    folder.fs.pipe_file(path, content)


def zero_4_kb(content: bytes) -> bytes:
    start = len(content) // 2
    return content[:start] + bytes(4096) + content[start + 4096 :]


def flip_a_bit(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "weights cut off": ("model.safetensors", lambda content: content[:-100]),
    "weights with a lost block": ("model.safetensors", zero_4_kb),
    "weights with a wrong bit": ("model.safetensors", flip_a_bit),
    "weights without content": ("model.safetensors", lambda _: b""),
    "optimizer with a lost block": (OPTIMIZER_FILE, zero_4_kb),
    "another state": ("state.json", lambda content: content.replace(b'"step": 3', b'"step": 4')),
    "manifest of bytes": ("manifest.json", lambda _: bytes(range(256))),
    "manifest cut off": ("manifest.json", lambda content: content[: len(content) // 2]),
    "manifest of zeros": ("manifest.json", lambda content: bytes(len(content))),
    "manifest without content": ("manifest.json", lambda _: b""),
    "manifest that is a list": ("manifest.json", lambda _: b"[]"),
    "manifest without files": ("manifest.json", lambda _: b'{"format_version": 1}'),
    "manifest of other files": (
        "manifest.json",
        lambda _: b'{"format_version": 1, "files": {"model.safetensors": {}}}',
    ),
    "manifest of a later nanoray": (
        "manifest.json",
        lambda content: content.replace(b'"format_version": 1', b'"format_version": 99'),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_moved_aside_and_the_one_before_it_taken(folder, damage, caplog):
    save_steps(folder, [1, 2, 3])
    name, apply = DAMAGES[damage]
    change(folder, 3, name, apply)
    left = folder.fs.cat_file(file_of(folder, 3, name))

    newest = newest_verified_step(folder)

    assert newest == 2
    assert committed_steps(folder) == [1, 2]
    [warning] = [record.getMessage() for record in caplog.records]
    assert "step 3 is damaged" in warning
    [aside] = list_folder(folder.fs, folder.path("checkpoints", "damaged"))
    assert aside.startswith("step_000003-")
    assert folder.fs.cat_file(folder.path("checkpoints", "damaged", aside, name)) == left


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER_FILE, "state.json"])
def test_a_step_with_a_missing_file_is_damaged(folder, name):
    save_steps(folder, [1, 2])
    folder.fs.rm_file(file_of(folder, 2, name))

    problem = find_damage(folder.fs, folder.path("checkpoints", step_name(2)))

    assert problem is not None
    assert name in problem
    assert newest_verified_step(folder) == 1


def test_a_step_on_a_disk_that_lost_its_manifest_is_damaged(disk, caplog):
    save_steps(disk, [1, 2])
    os.remove(file_of(disk, 2, "manifest.json"))

    newest = newest_verified_step(disk)

    assert newest == 1
    assert "has no manifest.json" in caplog.text


def test_a_whole_step_has_no_damage_and_stays(folder, caplog):
    save_steps(folder, [1, 2])

    newest = newest_verified_step(folder)

    assert newest == 2
    assert find_damage(folder.fs, folder.path("checkpoints", step_name(2))) is None
    assert committed_steps(folder) == [1, 2]
    assert caplog.records == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "Please reduce your request rate"),  # SlowDown and 503 of s3fs
        OSError(errno.EIO, "Input/output error"),
        PermissionError("The provided token has expired"),
        TimeoutError("Your socket connection to the server was not read from"),
    ],
    ids=["busy", "i/o error", "expired token", "timeout"],
)
def test_a_step_that_cannot_be_read_for_a_while_is_waited_for_and_not_taken_for_damaged(
    folder, error, monkeypatch
):
    save_steps(folder, [1, 2, 3])
    monkeypatch.setattr(storage, "FIRST_PAUSE_SECONDS", 0.01)
    opened, failures = folder.fs.open, [error, error]

    def open_busy(path: str, *args: Any, **kwargs: Any) -> Any:
        if failures and path.endswith(".safetensors"):
            raise failures.pop()
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(folder.fs, "open", open_busy)

    newest = with_patience(lambda: newest_verified_step(folder), 20, "runs/tiny")

    assert newest == 3
    assert committed_steps(folder) == [1, 2, 3]
    assert not failures
    assert list_folder(folder.fs, folder.path("checkpoints", "damaged")) == []


def test_where_every_step_is_damaged_there_is_none_and_nothing_was_deleted(disk, caplog):
    save_steps(disk, [1, 2, 3])
    for step in (1, 2, 3):
        change(disk, step, "model.safetensors", zero_4_kb)

    newest = newest_verified_step(disk)

    assert newest is None
    assert len(caplog.records) == 3
    assert len(list_folder(disk.fs, disk.path("checkpoints", "damaged"))) == 3


def test_there_is_no_step_before_the_first(folder):
    folder.run.begin_attempt("pretrain")

    assert newest_verified_step(folder) is None
    assert committed_steps(folder) == []


def test_steps_are_ordered_by_number_and_what_is_no_step_is_passed_over(disk):
    save_steps(disk, [999_999, 2, 1_000_000])
    for name in (".step_000005.attempt-0001", "damaged", "step_old", "step_"):
        os.makedirs(disk.path("checkpoints", name))

    steps = committed_steps(disk)

    assert steps == [2, 999_999, 1_000_000]


def test_files_are_described_as_they_are(tmp_path):
    content = random.Random(0).randbytes(5_000_000)  # more than is read at a time
    (tmp_path / "a").write_bytes(content)

    facts = describe_file(fsspec.filesystem("file"), str(tmp_path / "a"))

    assert facts["bytes"] == len(content)
    assert facts["sha256"] == sha256_of_coreutils(tmp_path / "a")


def sha256_of_coreutils(path: Path) -> str:
    with os.popen(f"sha256sum {path}") as output:
        return output.read().split()[0]


def test_any_rows_of_a_state_are_read_from_the_files_they_are_in(disk):
    attempt = disk.run.begin_attempt("pretrain")
    whole = tiny_state()
    scramble(whole, seed=1)
    saved = {piece.name: piece.tensor for piece in whole.optimizer.slices()}
    for rank in (2, 1, 0):
        state = tiny_state(GroupWorld(rank, 3))
        state.optimizer.load(lambda name, start, end: saved[name][start:end])
        state.step = 1
        Checkpointer(disk, GroupWorld(rank, 3), attempt=attempt, facts={}).save(state)
    step = Path(disk.path("checkpoints", step_name(1)))
    while not step.exists():
        time.sleep(0.01)
    paths = [str(path) for path in step.glob("optimizer-*")]

    with OptimizerFiles(paths) as files:
        for name, tensor in saved.items():
            for start, end in [(0, len(tensor)), (3, 4), (len(tensor) // 2, len(tensor))]:
                assert torch.equal(files.read(name, start, end), tensor[start:end])
    assert len(paths) == 3


def test_files_of_a_bucket_are_fetched_only_while_they_are_needed(bucket):
    save_steps(bucket, [1])

    with LocalFiles(bucket.fs, bucket.path("checkpoints", step_name(1))) as files:
        path = files.path("model.safetensors")
        model = tiny_model()
        load_weights(model, path)

    assert not os.path.exists(path)


def test_a_start_is_at_0_only_where_nothing_was_ever_saved(folder):
    folder.write_config({})
    assert first_step(folder) == 0

    save_steps(folder, [3])
    assert first_step(folder) == 3
    path = folder.path("checkpoints")
    folder.fs.mv(path, f"{path}.away", recursive=True)
    with pytest.raises(FileNotFoundError, match="checkpoints is not there"):
        first_step(folder)

    folder.fs.mv(f"{path}.away", path, recursive=True)
    assert first_step(folder) == 3
    move_aside(folder, 3, "damaged")
    assert first_step(folder) == 0, "all there was is damaged, and that is seen"
