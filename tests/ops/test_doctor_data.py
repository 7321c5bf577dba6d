from pathlib import Path
from typing import Any

import pytest

from nanoray.config import DataError
from nanoray.data.manifest import make_manifest
from nanoray.ops.doctor_data import DataFacts, expect_data, look_at_data, look_at_tokenizer
from nanoray.stages.pretrain_config import PretrainConfig, decide
from nanoray.storage import RunFolder, StageFolder, write_json
from nanoray.text.tokenizer_file import save_tokenizer
from tests.support import tiny_tokenizer, write_parquet


@pytest.fixture
def folder(tmp_path: Path) -> StageFolder:
    return RunFolder(f"{tmp_path}/runs", "r").stage("pretrain")


def config(tmp_path: Path, **fields: Any) -> PretrainConfig:
    """Give a decided config over the test's data."""
    options: dict[str, Any] = {"data": f"{tmp_path}/data", "num_steps": 4, **fields}
    given = PretrainConfig(**options)
    return decide(given, on_gpu=False, dtype="float32")


def write_data(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        write_parquet(tmp_path / "data", name, [f"some text of {name}"] * 50)


def test_the_driver_lists_shards_with_their_sizes(tmp_path: Path, folder: StageFolder):
    write_data(tmp_path)

    expected = expect_data(config(tmp_path), folder, f"{tmp_path}/runs")

    assert list(expected.sizes) == ["a.parquet", "b.parquet", "c.parquet"]
    assert expected.sizes["a.parquet"] == (tmp_path / "data" / "a.parquet").stat().st_size
    assert not expected.was_saved
    assert look_at_data(expected) == DataFacts()


def test_a_node_names_shards_that_are_missing_or_of_another_size(
    tmp_path: Path, folder: StageFolder
):
    write_data(tmp_path)
    expected = expect_data(config(tmp_path), folder, f"{tmp_path}/runs")
    (tmp_path / "data" / "a.parquet").unlink()
    with (tmp_path / "data" / "c.parquet").open("ab") as file:
        file.write(b"more")

    facts = look_at_data(expected)

    assert facts == DataFacts(missing=("a.parquet",), different=("c.parquet",))


def test_a_shard_of_the_runs_manifest_that_is_gone_is_named(tmp_path: Path, folder: StageFolder):
    write_data(tmp_path)
    manifest = make_manifest(f"{tmp_path}/data", "text")
    write_json(folder.fs, folder.path("manifest.json"), manifest.to_json())
    (tmp_path / "data" / "b.parquet").unlink()

    with pytest.raises(DataError, match=r"b\.parquet is missing"):
        expect_data(config(tmp_path), folder, f"{tmp_path}/runs")


def test_files_that_came_later_are_not_asked_for(tmp_path: Path, folder: StageFolder):
    write_data(tmp_path)
    manifest = make_manifest(f"{tmp_path}/data", "text")
    write_json(folder.fs, folder.path("manifest.json"), manifest.to_json())
    write_parquet(tmp_path / "data", "later.parquet", ["text"] * 50)

    expected = expect_data(config(tmp_path), folder, f"{tmp_path}/runs")

    assert expected.was_saved
    assert "later.parquet" not in expected.sizes


def test_nothing_of_a_named_dataset_is_fetched(tmp_path: Path, folder: StageFolder):
    asked = config(tmp_path, data="climbmix")

    expected = expect_data(asked, folder, f"{tmp_path}/runs")

    assert expected.to_fetch == 2
    assert not expected.sizes
    assert not (tmp_path / "runs").exists()


def test_tokenizers_are_told_apart(tmp_path: Path, folder: StageFolder):
    one, other = tiny_tokenizer(100), tiny_tokenizer(90)
    save_tokenizer(one, folder.run.tokenizer_address)
    save_tokenizer(other, f"{tmp_path}/other.json")
    step = {"step": 20, "tokenizer_hash": one.hash}
    write_json(folder.fs, folder.path("checkpoints", "step_000020", "state.json"), step)

    facts = look_at_tokenizer(config(tmp_path, tokenizer=f"{tmp_path}/other.json"), folder)

    assert (facts.named, facts.kept, facts.of_checkpoint) == (other.hash, one.hash, one.hash)
    assert (facts.step, facts.vocab_size, facts.error) == (20, one.vocab_size, None)


def test_a_tokenizer_that_is_not_there_is_said(tmp_path: Path, folder: StageFolder):
    facts = look_at_tokenizer(config(tmp_path, tokenizer=f"{tmp_path}/none.json"), folder)

    assert facts.error is not None
    assert "none.json does not exist" in facts.error


def test_a_run_that_begins_anew_has_no_tokenizer_yet(tmp_path: Path, folder: StageFolder):
    save_tokenizer(tiny_tokenizer(), folder.run.tokenizer_address)

    facts = look_at_tokenizer(config(tmp_path, fresh=True), folder)

    assert (facts.kept, facts.named, facts.vocab_size) == (None, None, None)
