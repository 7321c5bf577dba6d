"""Where a stage after pretraining starts from, and what it is compared with when it goes on."""

from dataclasses import replace
from pathlib import Path

import pytest

from nanoray.config import InputError, to_json
from nanoray.stages.finetune_config import FinetuneConfig
from nanoray.stages.start import fingerprint, keep_start, open_later_stage, stage_before
from nanoray.storage import RunFolder
from tests.saved_model import save_model
from tests.stages.chats import save_base
from tests.support import tiny_gpt, tiny_tokenizer

CONFIG = FinetuneConfig(run="r")


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
