"""Where a stage after pretraining starts from, and what it is compared with when it goes on."""

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoray.config import DataError, InputError, StorageError, to_json
from nanoray.data.conversation_files import FILE_KINDS
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.stages.start import (
    MIXTURE_FILE,
    fingerprint,
    keep_start,
    open_later_stage,
    stage_before,
)
from nanoray.stages.training_job import is_wanted
from nanoray.storage import RunFolder, write_json
from nanoray.train.checkpoint_name import SavedModel
from tests.saved_model import save_model
from tests.stages.chats import save_base
from tests.support import tiny_gpt, tiny_tokenizer

CONFIG = FinetuneConfig(run="r")
CHATS = tuple(FILE_KINDS)


def begin(storage: Path, config: FinetuneConfig = CONFIG) -> None:
    """Do what a first start does before it trains."""
    decided, opened = open_later_stage("sft", config, str(storage))
    keep_start(opened)
    opened.folder.write_config(to_json(decided))


def test_a_stage_starts_from_the_latest_finished_one_before_it(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    run = RunFolder(str(tmp_path), "r")

    assert stage_before(run.stage("sft")) == "r/pretrain"
    assert stage_before(run.stage("midtrain")) == "r/pretrain"
    with pytest.raises(InputError, match="no finished stage before pretrain"):
        stage_before(run.stage("pretrain"))


def test_a_stage_that_is_not_finished_is_no_start_unless_named(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    run = RunFolder(str(tmp_path), "r")
    run.forget_stage("pretrain")

    with pytest.raises(
        InputError, match=r"r/pretrain is not finished\. Finish it, or give another --run"
    ):
        stage_before(run.stage("sft"))


def test_a_step_that_a_later_stage_began_with_outlives_its_successors(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    model = tiny_gpt(vocab_size=tiny_tokenizer().vocab_size)
    save_model(folder, model, tiny_tokenizer(), steps=(10, 20))

    begin(tmp_path, replace(CONFIG, from_="r/pretrain@10"))

    assert [is_wanted(folder, None, (), step) for step in (10, 20)] == [True, False]


def test_somebody_elses_run_that_cannot_be_written_is_a_start_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base(tmp_path, "r")

    def refuse(self: SavedModel) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(SavedModel, "keep", refuse)

    begin(tmp_path)

    assert "r/pretrain@10 cannot be marked as needed" in caplog.text


def test_a_stage_goes_on_from_what_it_began_with(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    begin(tmp_path)

    config, opened = open_later_stage("sft", CONFIG, str(tmp_path))

    assert opened.has_begun
    assert config.from_ == "r/pretrain@10"


def test_weights_that_were_trained_anew_are_others(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    begin(tmp_path)
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    folder.move_aside()
    model = tiny_gpt(vocab_size=tiny_tokenizer().vocab_size)
    save_model(folder, model, tiny_tokenizer())

    with pytest.raises(InputError, match=r"began with other weights of r/pretrain@10\. Restore"):
        open_later_stage("sft", CONFIG, str(tmp_path))

    folder.move_aside()
    save_model(folder, model, tiny_tokenizer(), steps=(20,))
    with pytest.raises(InputError, match=r"began with r/pretrain@10, which is not there any more"):
        open_later_stage("sft", CONFIG, str(tmp_path))
    _, opened = open_later_stage("sft", replace(CONFIG, fresh=True), str(tmp_path))
    assert opened.start.step == 20


def test_storage_that_fails_for_a_while_is_no_reason_to_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base(tmp_path, "r")
    begin(tmp_path)
    fs = RunFolder(str(tmp_path), "r").fs
    opened = fs.open

    def fail(path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("model.safetensors"):
            raise OSError(errno.EBUSY, "Slow down")
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(fs, "open", fail)

    with pytest.raises(StorageError, match=r"Slow down.*Try again") as refused:
        open_later_stage("sft", CONFIG, str(tmp_path))
    assert "--fresh" not in str(refused.value)


def test_a_file_with_other_contents_is_another(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\n")
    config = replace(CONFIG, words=str(words))
    begin(tmp_path, config)

    again, _ = open_later_stage("sft", CONFIG, str(tmp_path))  # left out: what it was
    assert again.words == str(words)
    words.write_text("one\nsix\n")
    with pytest.raises(InputError, match="began with other contents of --words"):
        open_later_stage("sft", config, str(tmp_path))


def test_a_fingerprint_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("1")
    one = fingerprint(str(tmp_path))
    (tmp_path / "b.jsonl").write_text("2")
    two = fingerprint(str(tmp_path))

    assert one == fingerprint(str(tmp_path / "a.jsonl"))
    assert one != two == fingerprint(str(tmp_path / "*.jsonl"))
    assert fingerprint("embedded") != fingerprint("other")


def mix(storage: Path) -> None:
    """Leave what says that the mixture is stored."""
    folder = RunFolder(str(storage), "r").stage("sft")
    write_json(folder.fs, folder.path(MIXTURE_FILE), {})


def test_a_mixture_that_is_stored_needs_its_sources_no_more(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    data = tmp_path / "chats"
    data.mkdir()
    (data / "a.jsonl").write_text("[]")
    config = replace(CONFIG, data=str(data))
    begin(tmp_path, config)
    mix(tmp_path)

    (data / "README.md").write_text("no conversations")
    open_later_stage("sft", config, str(tmp_path))
    (data / "a.jsonl").write_text("[1]")
    again, _ = open_later_stage("sft", CONFIG, str(tmp_path))  # left out: what it was
    assert again.data == str(data)
    with pytest.raises(InputError, match="began with other contents of --data"):
        open_later_stage("sft", config, str(tmp_path))
    data.rename(tmp_path / "gone")
    open_later_stage("sft", config, str(tmp_path))  # as it was given, and cannot be looked at
    with pytest.raises(InputError, match="began with other contents of --data"):
        open_later_stage("sft", replace(CONFIG, data=str(tmp_path / "none")), str(tmp_path))


def test_a_mixture_that_is_not_stored_is_made_of_the_same_sources(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    (tmp_path / "a.jsonl").write_text("[]")
    begin(tmp_path, replace(CONFIG, data=str(tmp_path / "a.jsonl")))
    (tmp_path / "a.jsonl").unlink()

    with pytest.raises(InputError, match="began with other contents of --data"):
        open_later_stage("sft", CONFIG, str(tmp_path))


def test_files_are_kept_by_their_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path, "r")
    (tmp_path / "who.txt").write_text("name: Ray")

    decided, _ = open_later_stage(
        "rl", RLConfig(run="r", words="embedded", identity_file="who.txt"), str(tmp_path)
    )

    assert decided.words == "embedded"
    assert decided.identity_file == str(tmp_path / "who.txt")


def test_a_stage_whose_folder_is_gone_begins_again(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    begin(tmp_path)
    run = RunFolder(str(tmp_path), "r")
    run.record_start(run.begin_attempt("sft"), 5)
    run.mark_done("sft")
    (tmp_path / "r/sft").rename(tmp_path / "r/old")

    _, opened = open_later_stage("sft", CONFIG, str(tmp_path))

    assert not opened.has_begun
    assert not run.is_begun("sft")
    assert run.read_state()["stages_done"] == ["pretrain"]


def test_a_fingerprint_is_of_the_files_that_are_read(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "chats", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a.jsonl").write_text("[]")
    (elsewhere / "b.jsonl").write_text("[1]")
    alone = fingerprint(str(folder), CHATS)

    (folder / "broken.txt").symlink_to(tmp_path / "nowhere")
    assert fingerprint(str(folder), CHATS) == alone == fingerprint(f"{folder}/*", CHATS)
    (folder / "linked").symlink_to(elsewhere)
    both = fingerprint(str(folder), CHATS)
    assert both != alone == fingerprint(f"{folder}/*", CHATS)
    (elsewhere / "b.jsonl").write_text("[2]")
    assert fingerprint(str(folder), CHATS) != both

    (folder / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"broken\.jsonl cannot be read"):
        fingerprint(str(folder), CHATS)
