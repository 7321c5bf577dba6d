import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanoray.config import InputError, StorageError
from nanoray.data.plan import Cursor
from nanoray.storage import StageFolder, list_folder, read_json
from nanoray.train.checkpoint import Checkpointer
from nanoray.train.checkpoint_files import (
    committed_steps,
    newest_verified_step,
    step_name,
)
from tests.train.saved_states import FACTS, open_checkpoints, state_at
from tests.train.tiny_run import contents, same_contents, scramble, tiny_state


def save_steps(checkpointer: Checkpointer, steps: list[int]) -> None:
    state = state_at(0)
    for step in steps:
        state.step = step
        checkpointer.save(state)
    checkpointer.wait()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def wait_for(event: threading.Event) -> Callable[[], None]:
    def wait() -> None:
        assert event.wait(10)

    return wait


def names_in_checkpoints(folder: StageFolder) -> list[str]:
    return list_folder(folder.fs, folder.path("checkpoints"))


def test_a_restored_state_is_the_saved_one_bit_for_bit(folder):
    saved, restored = state_at(7, seed=1), state_at(0, seed=2)
    checkpointer = open_checkpoints(folder)
    checkpointer.save(saved)
    checkpointer.wait()

    open_checkpoints(folder).restore(restored, 7)

    assert newest_verified_step(folder) == 7
    assert same_contents(restored, saved)
    assert (restored.step, restored.tokens, restored.cursor) == (7, 7000, Cursor(21, 2))


def test_who_may_read_a_run_may_read_its_weights(disk):
    checkpointer = open_checkpoints(disk)
    checkpointer.save(state_at(1))
    checkpointer.wait()

    files = Path(disk.path("checkpoints", step_name(1))).iterdir()
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask()}


def test_an_embedding_in_bf16_is_restored_bit_for_bit(disk):
    saved = state_at(1, seed=1, embedding_dtype="bfloat16")
    restored = state_at(0, seed=2, embedding_dtype="bfloat16")
    checkpointer = open_checkpoints(disk)
    checkpointer.save(saved)
    checkpointer.wait()

    checkpointer.restore(restored, 1)

    assert restored.model.embedding.weight.dtype == torch.bfloat16
    assert same_contents(restored, saved)


def test_saving_goes_on_behind_the_training_and_wait_waits_for_it(folder):
    checkpointer, may_commit = open_checkpoints(folder), threading.Event()

    checkpointer.save(state_at(1), before_commit=wait_for(may_commit))
    steps_before = committed_steps(folder)
    may_commit.set()
    checkpointer.wait()

    assert steps_before == []
    assert committed_steps(folder) == [1]


def test_what_is_saved_is_the_state_at_the_call(disk):
    state, may_commit = state_at(1, seed=1), threading.Event()
    expected = contents(state)
    checkpointer = open_checkpoints(disk)

    checkpointer.save(state, before_commit=wait_for(may_commit))
    scramble(state, seed=2)
    state.step = 99
    may_commit.set()
    checkpointer.wait()

    restored = state_at(0, seed=3)
    checkpointer.restore(restored, 1)
    assert all(torch.equal(value, expected[name]) for name, value in contents(restored).items())


def test_each_of_many_saves_has_its_own_content(disk):
    checkpointer = open_checkpoints(disk)
    for step in (1, 2, 3):
        checkpointer.save(state_at(step, seed=step))
    checkpointer.wait()

    for step in (1, 2, 3):
        restored = tiny_state()
        checkpointer.restore(restored, step)

        assert same_contents(restored, state_at(step, seed=step))


def test_nothing_is_visible_on_a_disk_before_the_commit(disk):
    seen: list[str] = []
    checkpointer = open_checkpoints(disk)

    checkpointer.save(state_at(1), before_commit=lambda: seen.extend(names_in_checkpoints(disk)))
    checkpointer.wait()

    assert seen == [".step_000001.attempt-0001"]
    assert names_in_checkpoints(disk) == ["step_000001"]


def test_the_manifest_is_the_last_object_of_a_step_in_a_bucket(bucket):
    seen: list[str] = []
    step = bucket.path("checkpoints", step_name(1))
    checkpointer = open_checkpoints(bucket)

    checkpointer.save(state_at(1), before_commit=lambda: seen.extend(list_folder(bucket.fs, step)))
    checkpointer.wait()

    assert "model.safetensors" in seen
    assert "state.json" in seen
    assert "manifest.json" not in seen
    assert "manifest.json" in list_folder(bucket.fs, step)


def test_a_step_without_manifest_does_not_count_in_a_bucket(bucket):
    checkpointer = open_checkpoints(bucket)
    save_steps(checkpointer, [1, 2])
    bucket.fs.rm_file(bucket.path("checkpoints", step_name(2), "manifest.json"))

    newest = newest_verified_step(bucket)

    assert newest == 1
    assert committed_steps(bucket) == [1]


def test_a_step_is_tensors_and_json_with_their_checksums(folder, tmp_path):
    save_steps(open_checkpoints(folder), [1])

    path = folder.path("checkpoints", step_name(1))
    contents = {name: folder.fs.cat_file(f"{path}/{name}") for name in list_folder(folder.fs, path)}
    assert sorted(contents) == [
        "manifest.json",
        "model.safetensors",
        "optimizer-00000-of-00001.safetensors",
        "state.json",
    ]
    manifest = json.loads(contents["manifest.json"])
    for name, content in contents.items():
        if name.endswith(".json"):
            assert json.loads(content)["format_version"] == 1
        else:
            (tmp_path / name).write_bytes(content)
            assert load_file(tmp_path / name)
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
        if name != "manifest.json"
    }


def test_the_state_says_what_it_was_trained_with(disk):
    save_steps(open_checkpoints(disk), [1])

    saved = read_json(disk.fs, disk.path("checkpoints", step_name(1), "state.json"))

    assert saved is not None
    assert {name: saved[name] for name in FACTS} == FACTS
    assert saved["world_size"] == 1


def test_a_state_of_another_run_is_refused_with_what_differs(disk):
    save_steps(open_checkpoints(disk), [1])
    state = state_at(0, seed=2)
    facts = {**FACTS, "model": {"num_layers": 3}, "data_hash": "other"}

    with pytest.raises(InputError, match=r"was saved with model .*; data_hash .*, not ") as error:
        open_checkpoints(disk, facts=facts).restore(state, 1)

    assert "Step 1 of " in str(error.value)
    assert same_contents(state, state_at(0, seed=2)), "the state was changed all the same"


def test_what_dead_attempts_left_half_written_is_deleted(disk):
    for attempt in (1, 2):
        half = disk.path("checkpoints", f".step_000005.attempt-{attempt:04d}")
        os.makedirs(half)
        Path(half, "model.safetensors").write_bytes(b"half")
        disk.run.begin_attempt("pretrain")

    save_steps(open_checkpoints(disk), [6])

    assert names_in_checkpoints(disk) == ["step_000006"]


def test_what_dead_attempts_left_in_a_bucket_is_deleted_when_it_cannot_be_under_way(bucket):
    for step in (5, 7):
        bucket.fs.pipe_file(bucket.path("checkpoints", step_name(step), "model.safetensors"), b"")

    save_steps(open_checkpoints(bucket), [6])

    # Another rank may be as far as step 7 already.
    assert names_in_checkpoints(bucket) == ["step_000006", "step_000007"]
    assert committed_steps(bucket) == [6]


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [
        (1, None, [7]),
        (3, None, [5, 6, 7]),
        (2, 3, [3, 6, 7]),
        (1, 2, [2, 4, 6, 7]),
        (9, None, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_old_steps_are_deleted_but_those_to_keep(folder, keep_last, keep_every, kept):
    checkpointer = open_checkpoints(folder, keep_last=keep_last, keep_every=keep_every)

    save_steps(checkpointer, [1, 2, 3, 4, 5, 6, 7])

    assert committed_steps(folder) == kept
    assert names_in_checkpoints(folder) == [step_name(step) for step in kept]


@pytest.mark.parametrize("call", ["save", "wait"])
def test_an_error_behind_the_training_is_raised_by_the_next_call(disk, call):
    checkpointer = open_checkpoints(disk, patience_seconds=0)
    os.makedirs(disk.path())
    Path(disk.path("checkpoints")).write_text("a file where a folder should be")
    checkpointer.save(state_at(1))

    with pytest.raises(StorageError, match="checkpoints"):
        checkpointer.wait() if call == "wait" else checkpointer.save(state_at(2))

    os.remove(disk.path("checkpoints"))
    checkpointer.save(state_at(3))
    checkpointer.wait()
    assert committed_steps(disk) == [3]


def test_an_error_before_the_commit_leaves_no_step(folder):
    def fail() -> None:
        raise OSError("the log could not be flushed")

    checkpointer = open_checkpoints(folder, patience_seconds=0)

    checkpointer.save(state_at(1), before_commit=fail)

    with pytest.raises(StorageError, match="could not be flushed"):
        checkpointer.wait()
    assert committed_steps(folder) == []


def test_a_step_that_a_group_committed_after_it_was_replaced_makes_room(disk, monkeypatch):
    old, new = open_checkpoints(disk), open_checkpoints(disk)
    monkeypatch.setattr(
        old, "check_attempt", lambda: None
    )  # it looked just before the other one began
    save_steps(old, [20])

    new.save(state_at(20, seed=2))
    new.wait()

    restored = state_at(0)
    new.restore(restored, 20)
    assert same_contents(restored, state_at(20, seed=2))
    assert len(list_folder(disk.fs, disk.path("checkpoints", "replaced"))) == 1
