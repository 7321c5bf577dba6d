import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoray.config import DataError
from nanoray.data.listing import find_shards
from nanoray.data.manifest import Manifest, check_unchanged, make_manifest
from nanoray.data.plan import split_units
from tests.data.shards import sentences, write_row_groups, write_shard, write_shards

NAMES = ["shard_0.parquet", "shard_1.parquet", "shard_2.parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "texts", NAMES)


@pytest.fixture
def memory_folder() -> Iterator[str]:
    address = "memory://bucket/texts"
    fs = fsspec.filesystem("memory")
    for seed, name in enumerate(NAMES):
        with fs.open(f"{address}/{name}", "wb") as file:
            pq.write_table(pa.table({"text": sentences(10, seed)}), file)
    yield address
    fs.rm("memory://bucket", recursive=True)


def paths_of(manifest: Manifest) -> list[str]:
    return [shard.path for shard in manifest.shards]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def test_a_missing_column_is_told_with_those_that_are_there(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "url": ["b"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError) as error:
        make_manifest(str(tmp_path), "text")

    assert "has no column 'text'; it has 'body', 'url'" in str(error.value)
    assert "--text-column" in str(error.value)
    assert "a.parquet" in str(error.value)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (pa.array([b"a"], pa.binary()), "binary"),
        (pa.array([1], pa.int64()), "int64"),
        (pa.array([["a"]], pa.list_(pa.string())), "list"),
        (pa.array([{"a": "b"}]), "struct"),
    ],
)
def test_a_column_that_is_not_text_is_refused_with_its_type(tmp_path, values, kind):
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=f"holds {kind}.* in column 'text', not text"):
        make_manifest(str(tmp_path), "text")


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
)
def test_text_counts_as_text_however_arrow_keeps_it(tmp_path, kind):
    values = pa.array(sentences(8)).cast(kind)
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet", row_group_size=4)

    manifest = make_manifest(str(tmp_path), "text")

    assert [rows for rows, _ in manifest.shards[0].row_groups] == [4, 4]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"<html>404 not found</html>" * 10])
def test_a_file_that_is_no_parquet_is_named(folder, content):
    (folder / "shard_3.parquet").write_bytes(content)

    with pytest.raises(DataError, match=r"shard_3\.parquet is no whole parquet file"):
        make_manifest(str(folder), "text")


def test_a_truncated_shard_among_good_ones_is_named_with_the_remedy(folder):
    truncate(folder / NAMES[1])

    with pytest.raises(DataError) as error:
        make_manifest(str(folder), "text")

    assert f"{folder}/{NAMES[1]} is no whole parquet file" in str(error.value)
    assert "--skip-bad-shards" in str(error.value)


def test_a_bad_shard_is_skipped_only_when_asked_and_then_said(folder, caplog):
    truncate(folder / NAMES[1])

    manifest = make_manifest(str(folder), "text", skip_bad_shards=True)

    assert paths_of(manifest) == [NAMES[0], NAMES[2]]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert NAMES[1] in caplog.text


def test_skipping_does_not_make_something_of_nothing(folder):
    for name in NAMES:
        truncate(folder / name)

    with pytest.raises(DataError, match="holds no text in column 'text'"):
        make_manifest(str(folder), "text", skip_bad_shards=True)


def test_a_shard_without_rows_is_left_out_even_where_it_is_the_last(folder):
    write_row_groups(folder / "shard_9.parquet", [])

    manifest = make_manifest(str(folder), "text")

    assert paths_of(manifest) == NAMES
    assert manifest.validation_shard == NAMES[2]


def test_row_groups_are_those_of_the_footer(tmp_path):
    groups = [["a" * 40] * 300, ["b" * 50], [], ["c" * 10, "d"]]
    write_row_groups(tmp_path / "a.parquet", groups)

    shard = make_manifest(str(tmp_path), "text").shards[0]

    filled = [texts for texts in groups if texts]
    assert [rows for rows, _ in shard.row_groups] == [len(texts) for texts in filled]
    for (_, size), texts in zip(shard.row_groups, filled, strict=True):
        # Plain encoding: four bytes of length for each text, and well under 200 for the headers.
        text_bytes = sum(4 + len(text) for text in texts)
        assert text_bytes <= size < text_bytes + 200
    assert shard.num_bytes == sum(size for _, size in shard.row_groups)


def test_shards_come_in_the_order_of_their_names(tmp_path):
    for name in ("b", "c", "a", "10", "9"):
        write_shard(tmp_path / f"{name}.parquet", ["some text"])

    manifest = make_manifest(str(tmp_path), "text")

    assert paths_of(manifest) == [f"{name}.parquet" for name in ("10", "9", "a", "b", "c")]


def test_the_last_shard_is_for_validation(folder):
    manifest = make_manifest(str(folder), "text")

    assert manifest.validation_shard == NAMES[-1]


def test_a_single_file_gives_its_last_units_to_validation(folder):
    write_shard(folder / NAMES[0], sentences(400))

    manifest = make_manifest(f"{folder}/{NAMES[0]}", "text")

    assert paths_of(manifest) == [NAMES[0]]
    assert manifest.validation_shard is None
    training, validation = split_units(manifest)
    assert validation[0].start == training[-1].end
    held_out = sum(unit.num_bytes for unit in validation) / manifest.shards[0].num_bytes
    assert 0.02 < held_out < 0.1


def test_a_single_document_leaves_nothing_to_validate_on(tmp_path):
    write_shard(tmp_path / "a.parquet", ["all there is"])

    with pytest.raises(DataError, match="single document"):
        split_units(make_manifest(str(tmp_path), "text"))


def test_the_hash_does_not_depend_on_where_the_shards_are(folder, tmp_path):
    before = make_manifest(str(folder), "text")
    shutil.move(folder, tmp_path / "moved")

    after = make_manifest(str(tmp_path / "moved"), "text")

    assert after.root != before.root
    assert after.hash == before.hash


def test_the_hash_is_that_of_the_content(folder):
    before = make_manifest(str(folder), "text")
    write_shard(folder / NAMES[0], sentences(11))

    after = make_manifest(str(folder), "text")

    assert after.hash != before.hash


def test_a_manifest_survives_json(folder):
    manifest = make_manifest(str(folder), "text")

    saved = manifest.to_json()

    assert Manifest.from_json(saved) == manifest
    assert saved["hash"] == manifest.hash


def test_files_that_were_added_since_are_left_alone(folder):
    saved = make_manifest(str(folder), "text")
    write_shard(folder / "a_first.parquet", ["added before"])
    write_shard(folder / "z_last.parquet", ["added after"])

    now = check_unchanged(saved, str(folder))

    assert now == saved


def test_a_run_on_one_file_keeps_its_validation_part_when_others_are_added(folder):
    for name in NAMES[1:]:
        os.remove(folder / name)
    saved = make_manifest(str(folder), "text")
    write_shard(folder / "z_last.parquet", ["added after"])

    now = check_unchanged(saved, str(folder))

    assert now.validation_shard is None
    assert now.hash == saved.hash


def test_a_moved_folder_is_the_same_data_under_its_new_root(folder, tmp_path):
    saved = make_manifest(str(folder), "text")
    shutil.move(folder, tmp_path / "moved")

    now = check_unchanged(saved, str(tmp_path / "moved"))

    assert now.root == str(tmp_path / "moved")
    assert now.hash == saved.hash


def test_changed_and_missing_files_are_named(folder):
    saved = make_manifest(str(folder), "text")
    os.remove(folder / NAMES[0])
    write_shard(folder / NAMES[1], sentences(10, seed=7))
    truncate(folder / NAMES[2])

    with pytest.raises(DataError) as error:
        check_unchanged(saved, str(folder))

    assert f"{NAMES[0]} is missing" in str(error.value)
    assert f"{NAMES[1]} has changed" in str(error.value)
    assert f"{NAMES[2]} has changed" in str(error.value)
    assert "--fresh" in str(error.value)


def test_of_many_missing_files_three_are_named_and_the_rest_counted(tmp_path):
    for index in range(6):
        write_shard(tmp_path / f"{index}.parquet", sentences(3, index))
    saved = make_manifest(str(tmp_path), "text")
    for index in range(5):
        os.remove(tmp_path / f"{index}.parquet")

    with pytest.raises(DataError) as error:
        check_unchanged(saved, str(tmp_path))

    assert str(error.value).count("is missing") == 3
    assert "and 2 more" in str(error.value)


def test_copies_of_a_shard_are_told(folder, caplog):
    shutil.copy(folder / NAMES[0], folder / "shard_9.parquet")

    manifest = make_manifest(str(folder), "text")

    assert len(manifest.shards) == 4
    assert "1 of 4 shards seem to be copies of another one, as shard_9.parquet is of shard_0" in (
        caplog.text
    )


def test_row_groups_that_are_dear_to_read_from_far_away_are_told(memory_folder, caplog):
    make_manifest(memory_folder, "text")
    assert not caplog.text
    with fsspec.open(f"{memory_folder}/large.parquet", "wb") as file:
        table = pa.table({"text": [f"{i}" + "x" * 400_000 for i in range(100)]})
        pq.write_table(table, file, compression="zstd", use_dictionary=False)

    make_manifest(memory_folder, "text")

    assert "row groups of up to 40 MB of text. They are read from there in parts" in caplog.text
    assert "some 5 times in all" in caplog.text


def test_any_filesystem_will_do(memory_folder):
    manifest = make_manifest(memory_folder, "text")

    assert paths_of(manifest) == NAMES
    assert manifest.root.startswith("memory://")
    assert check_unchanged(manifest, memory_folder) == manifest
    assert paths_of(make_manifest(f"{memory_folder}/*_1.parquet", "text")) == [NAMES[1]]
    with fsspec.open(f"{memory_folder}/spark.parquet/part.parquet", "wb") as file:
        pq.write_table(pa.table({"text": sentences(3)}), file)
    assert paths_of(make_manifest(f"{memory_folder}/sp*", "text")) == ["spark.parquet/part.parquet"]
    assert paths_of(make_manifest(f"{memory_folder}/{NAMES[2]}", "text")) == [NAMES[2]]


def test_the_same_files_have_the_same_hash_on_every_filesystem(memory_folder, tmp_path):
    fs, _, names = find_shards(memory_folder)
    for name in names:
        fs.get_file(f"{memory_folder}/{name}", str(tmp_path / name))

    local, remote = make_manifest(str(tmp_path), "text"), make_manifest(memory_folder, "text")

    assert local.hash == remote.hash


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")

    with pytest.raises(DataError, match="has several columns 'text'"):
        make_manifest(str(tmp_path), "text")
