import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.config import DataError, InputError
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import read_documents, split_units
from nanoray.stages.tokenizer import (
    TokenizerConfig,
    bytes_per_token,
    check_output,
    train_tokenizer,
)
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer
from tests.data.shards import write_shard
from tests.running import Cluster, run_job, small_corpus, start_cluster


@pytest.fixture
def one_cpu() -> Iterator[Cluster]:
    cluster = start_cluster(num_cpus=1)
    yield cluster
    cluster.stop()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_tokenizer_is_the_same_to_the_byte_on_any_number_of_workers(
    ray_cluster: Cluster, one_cpu: Cluster, tmp_path: Path
) -> None:
    data = small_corpus(tmp_path / "data")
    files = [tmp_path / f"{name}.json" for name in ("eight", "one")]

    for cluster, file in zip((ray_cluster, one_cpu), files, strict=True):
        code, output = run_job(
            "tokenizer.py",
            *("--data", data, "--vocab-size", 500, "--output", file),
            env=cluster.environment(),
        )
        assert code == 0, output

    assert files[0].read_bytes() == files[1].read_bytes()
    assert "500 ids" in output
    assert "bytes per token on held-out text" in output
    saved = json.loads(files[0].read_text())
    assert saved["vocab_size"] == 500
    assert saved["hash"] == load_tokenizer(str(files[0])).hash


@pytest.mark.cluster
def test_more_ids_than_the_text_gives_are_refused_and_nothing_is_written(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    data, file = small_corpus(tmp_path), tmp_path / "tokenizer.json"

    code, output = run_job(
        "tokenizer.py",
        *("--data", data, "--vocab-size", 90_000, "--output", file),
        env=ray_cluster.environment(),
    )

    assert code == 2, output
    assert "--vocab-size 90000 is more than the text gives: it has" in output
    assert not file.exists()


@pytest.mark.cluster
def test_a_training_part_without_text_is_told(ray_cluster: Cluster, tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "a.parquet", ["", None])
    write_shard(tmp_path / "data" / "b.parquet", ["some text"])

    code, output = run_job(
        "tokenizer.py",
        *(
            "--data",
            tmp_path / "data",
            "--vocab-size",
            512,
            "--output",
            tmp_path / "new" / "t.json",
        ),
        env=ray_cluster.environment(),
    )

    assert code == 2, output
    assert f"--data {tmp_path}/data has no text in its training part" in output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("there", ["", "new"])
def test_a_look_at_the_output_leaves_no_folder_behind(tmp_path: Path, there: str) -> None:
    (tmp_path / there).mkdir(exist_ok=True)
    before = sorted(tmp_path.rglob("*"))

    check_output(str(tmp_path / "new" / "deep" / "tokenizer.json"))

    assert sorted(tmp_path.rglob("*")) == before


def test_compression_is_measured_on_held_out_text(tmp_path: Path) -> None:
    manifest = make_manifest(str(small_corpus(tmp_path)), "text")
    text = read_documents(manifest, split_units(manifest)[1][0])

    raw = bytes_per_token(Tokenizer([]), manifest)

    assert text
    assert raw == 1.0  # without merges each byte is a token


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"vocab_size": 264}, "The least is 265"), ({"max_chars": 0}, "--max-chars 0 is too small")],
)
def test_a_config_that_cannot_work_is_refused(fields: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TokenizerConfig(**fields)  # type: ignore[arg-type]  # one table of int fields


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    data = small_corpus(tmp_path / "data")
    (tmp_path / "file").write_text("")

    for output, said in (
        (tmp_path, "is a folder. Name a file in it."),
        (tmp_path / "file" / "tokenizer.json", "cannot be written"),
    ):
        with pytest.raises(InputError, match=said):
            train_tokenizer(TokenizerConfig(data=str(data), output=str(output)))
    with pytest.raises(InputError, match="is a folder"):
        load_tokenizer(str(tmp_path))


def test_a_validation_part_without_text_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", ["some text"])
    write_shard(tmp_path / "b.parquet", ["", None])

    with pytest.raises(DataError, match=r"has no text in b\.parquet"):
        bytes_per_token(Tokenizer([]), make_manifest(str(tmp_path), "text"))
