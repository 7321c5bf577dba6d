"""`RUN[/stage][@step]`, found on storage."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoray.config import InputError, StorageError
from nanoray.model.gpt import GPT
from nanoray.storage import RunFolder, StageFolder
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.checkpoint_files import step_name
from nanoray.train.checkpoint_name import find_model
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld
from tests.train.tiny_run import tiny_state

TOKENIZER = Tokenizer([])


def save(storage: Path, stage: str, *steps: int, done: bool = True) -> TrainState:
    """Save some steps of a stage of the run `r`, the last one last."""
    folder = RunFolder(str(storage), "r").stage(stage)
    save_tokenizer(TOKENIZER, folder.run.tokenizer_address)
    state = tiny_state()
    facts = {"tokenizer_hash": TOKENIZER.hash, "model": state.model.config.to_json()}
    attempt = folder.run.begin_attempt(stage)
    policy = SavePolicy(keep_last=9)
    checkpointer = Checkpointer(folder, LocalWorld(), attempt=attempt, facts=facts, policy=policy)
    for step in steps:
        state.step = step
        checkpointer.save(state)
    checkpointer.wait()
    if done:
        folder.run.mark_done(stage)
    return state


def weights_file(folder: StageFolder, step: int) -> Path:
    return Path(folder.path("checkpoints", step_name(step), "model.safetensors"))


def damage(storage: Path, stage: str, step: int) -> None:
    file = weights_file(RunFolder(str(storage), "r").stage(stage), step)
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("r", "r/sft@7"),
        ("r/pretrain", "r/pretrain@20"),
        ("r/pretrain@10", "r/pretrain@10"),
        ("r@7", "r/sft@7"),
    ],
)
def test_a_name_leads_to_a_checkpoint(tmp_path: Path, name: str, full: str) -> None:
    save(tmp_path, "pretrain", 10, 20)
    save(tmp_path, "sft", 7)

    assert find_model(str(tmp_path), name).name == full


def test_a_stage_that_is_finished_counts_before_one_that_is_not(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10)
    save(tmp_path, "sft", 7, done=False)

    assert find_model(str(tmp_path), "r").name == "r/pretrain@10"
    assert find_model(str(tmp_path), "r/sft").name == "r/sft@7"


def test_a_run_that_still_trains_can_be_named(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10, done=False)

    assert find_model(str(tmp_path), "r").name == "r/pretrain@10"


def test_a_damaged_step_is_passed_over_and_left_where_it_is(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10, 20)
    damage(tmp_path, "pretrain", 20)

    found = find_model(str(tmp_path), "r")

    assert found.step == 10
    assert weights_file(found.folder, 20).exists()


def test_storage_that_fails_is_not_taken_for_damage_to_the_newest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, "pretrain", 10, 20)
    fs = RunFolder(str(tmp_path), "r").fs
    opened = fs.open

    def fail(path: str, *args: Any, **kwargs: Any) -> Any:
        if "step_000020" in path:
            raise OSError(errno.EBUSY, "Slow down")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(fs, "open", fail)

    for name in ("r", "r@20"):
        with pytest.raises(StorageError, match=rf"{tmp_path} .*Slow down.*{name} .*Try again"):
            find_model(str(tmp_path), name)
    monkeypatch.undo()
    assert find_model(str(tmp_path), "r").step == 20


def test_a_missing_optimizer_is_no_damage_to_a_model(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10)
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    for file in weights_file(folder, 10).parent.glob("optimizer-*"):
        file.unlink()

    assert find_model(str(tmp_path), "r").step == 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("r/x/y", "names no checkpoint. Write RUN, RUN/stage or RUN/stage@step"),
        ("", "names no checkpoint"),
        ("r@x", "names no checkpoint"),
        ("nowhere", "nowhere/pretrain has no checkpoint"),
        ("r/sft", "r/sft has no checkpoint"),
        ("r@11", "has no checkpoint of step 11. It has 10, 20"),
        ("r@20", "r@20 is damaged: model.safetensors does not have its checksum"),
    ],
)
def test_a_name_that_leads_nowhere_is_explained(tmp_path: Path, name: str, said: str) -> None:
    save(tmp_path, "pretrain", 10, 20)
    damage(tmp_path, "pretrain", 20)

    with pytest.raises(InputError, match=said):
        find_model(str(tmp_path), name)


def test_where_every_step_is_damaged_that_is_said(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10)
    damage(tmp_path, "pretrain", 10)

    with pytest.raises(InputError, match=r"no whole checkpoint of \[10\]"):
        find_model(str(tmp_path), "r")


def test_the_model_comes_back_with_its_weights_and_its_tokenizer(tmp_path: Path) -> None:
    state = save(tmp_path, "pretrain", 10)

    found = find_model(str(tmp_path), "r")
    model = found.load(torch.bfloat16, torch.device("cpu"))

    assert isinstance(model, GPT)
    assert model.compute_dtype == torch.bfloat16
    assert found.tokenizer().hash == TOKENIZER.hash
    for name, weight in state.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def test_another_tokenizer_than_the_models_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10)
    found = find_model(str(tmp_path), "r")
    save_tokenizer(Tokenizer([(104, 105)]), found.folder.run.tokenizer_address)

    with pytest.raises(InputError, match="was trained with"):
        found.tokenizer()


@pytest.mark.parametrize("how", ["changed", "missing", "unlisted"])
def test_an_optimizer_that_is_not_whole_is_refused(tmp_path: Path, how: str) -> None:
    save(tmp_path, "pretrain", 10)
    found = find_model(str(tmp_path), "r")
    found.check_optimizer()
    folder = Path(found.folder.path("checkpoints", step_name(10)))
    [file] = folder.glob("optimizer-*")
    if how == "changed":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif how == "missing":
        file.unlink()
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"][file.name]
        (folder / "manifest.json").write_text(json.dumps(manifest))

    again = find_model(str(tmp_path), "r")  # its weights are whole
    said = {"changed": "checksum", "missing": "is missing", "unlisted": "lists none"}[how]
    with pytest.raises(InputError, match=rf"--warm-start.*{said}.*leave --warm-start out"):
        again.check_optimizer()


def test_a_run_that_was_deleted_is_not_found(tmp_path: Path) -> None:
    save(tmp_path, "pretrain", 10)
    shutil.rmtree(tmp_path / "r")

    with pytest.raises(InputError, match="has no checkpoint"):
        find_model(str(tmp_path), "r")
