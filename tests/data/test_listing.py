"""What an address of training data is taken to mean."""

import os
import shutil
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from nanoray.config import DataError
from nanoray.data.listing import find_shards
from nanoray.data.manifest import Manifest, make_manifest
from tests.data.shards import write_shard, write_shards
from tests.http_server import serving

NAMES = ["shard_0.parquet", "shard_1.parquet", "shard_2.parquet"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "texts", NAMES)


def paths_of(manifest: Manifest) -> list[str]:
    return [shard.path for shard in manifest.shards]


def test_a_missing_folder_is_named_with_what_could_be_given(tmp_path):
    address = str(tmp_path / "nowhere")

    with pytest.raises(DataError) as error:
        make_manifest(address, "text")

    assert f"--data {address} does not exist" in str(error.value)
    assert "s3://" in str(error.value)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("no shard")

    with pytest.raises(DataError, match=r"has no file that ends in \.parquet") as error:
        make_manifest(str(tmp_path), "text")

    assert str(tmp_path) in str(error.value)


def test_a_glob_that_fits_nothing_is_named(folder):
    with pytest.raises(DataError, match="has no file"):
        make_manifest(f"{folder}/train_*.parquet", "text")


def test_a_glob_takes_what_fits_and_no_more(folder):
    write_shard(folder / "other.parquet", ["other"])

    manifest = make_manifest(f"{folder}/shard_[01].parquet", "text")

    assert paths_of(manifest) == NAMES[:2]
    assert manifest.root == str(folder)


def test_a_glob_over_folders_keeps_their_names(tmp_path):
    for part in ("a", "b"):
        write_shard(tmp_path / "texts" / part / "x.parquet", [part])

    manifest = make_manifest(f"{tmp_path}/texts/*/x.parquet", "text")

    assert paths_of(manifest) == ["a/x.parquet", "b/x.parquet"]
    assert manifest.root == f"{tmp_path}/texts"


def test_a_folder_with_the_ending_of_a_shard_is_searched_too(tmp_path):
    texts = tmp_path / "texts"
    write_shard(texts / "x.parquet" / "part-0.snappy.parquet", ["as Spark writes"])
    write_shard(texts / "x.parquet" / "more" / "part-1.parquet", ["deep"])
    (texts / "x.parquet" / "_SUCCESS").write_text("")
    write_shard(texts / "y.parquet", ["one file"])
    names = ["x.parquet/more/part-1.parquet", "x.parquet/part-0.snappy.parquet", "y.parquet"]

    for address in (texts, f"{texts}/*", f"{texts}/*.parquet", f"{texts}/**"):
        assert paths_of(make_manifest(str(address), "text")) == names


def test_nested_folders_are_searched(tmp_path):
    write_shard(tmp_path / "texts/2023/05/x.parquet", ["deep"])
    write_shard(tmp_path / "texts/y.parquet", ["shallow"])

    manifest = make_manifest(str(tmp_path / "texts"), "text")

    assert paths_of(manifest) == ["2023/05/x.parquet", "y.parquet"]


@pytest.mark.parametrize("name", ["we[1] rd ü", "what?", "star*"])
def test_a_folder_may_have_signs_of_a_glob_in_its_name(folder: Path, name: str) -> None:
    odd = folder.rename(folder.parent / name)

    assert paths_of(make_manifest(str(odd), "text")) == NAMES
    assert paths_of(make_manifest(f"{odd}/{NAMES[0]}", "text")) == NAMES[:1]


def test_links_to_folders_are_followed_once_and_never_in_a_circle(folder: Path) -> None:
    linked = folder.parent / "linked"
    linked.mkdir()
    (linked / "texts").symlink_to(folder)
    (linked / "twice").symlink_to(folder)
    (linked / "circle").symlink_to(linked)

    found = paths_of(make_manifest(str(linked), "text"))

    assert [path.partition("/")[2] for path in found] == NAMES


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/shard_0-checkpoint.parquet",
        ".Trash-1000/files/deleted.parquet",
        "_temporary/0/part-00000.parquet",
        "._shard_1.parquet",
    ],
)
def test_hidden_files_are_no_data_unless_they_are_named(folder: Path, name: str) -> None:
    write_shard(folder / name, ["hidden"])

    for address in (folder, f"{folder}/*", f"{folder}/**/*.parquet", f"file://{folder}"):
        assert find_shards(str(address))[2] == NAMES
    assert paths_of(make_manifest(str(folder / name), "text")) == [Path(name).name]
    pattern = "/".join((*Path(name).parts[:-1], f"{Path(name).name[:3]}*"))
    assert find_shards(f"{folder}/{pattern}")[2]


def test_a_folder_of_hidden_files_alone_says_so(tmp_path: Path) -> None:
    write_shard(tmp_path / "_temporary" / "part.parquet", ["hidden"])

    with pytest.raises(DataError, match=r"none that is not hidden .* begins with \. or _"):
        make_manifest(str(tmp_path), "text")


def test_the_ending_may_be_in_capitals(folder: Path) -> None:
    (folder / NAMES[1]).rename(folder / "SHARD_1.PARQUET")

    assert find_shards(str(folder))[2] == ["SHARD_1.PARQUET", NAMES[0], NAMES[2]]


def test_a_file_with_several_links_is_one_shard(tmp_path: Path) -> None:
    blobs = write_shards(tmp_path / "blobs", ["1", "2"])
    for snapshot in ("r1", "r2"):  # as in the cache of the Hugging Face hub
        (tmp_path / "snapshots" / snapshot).mkdir(parents=True)
        for blob in ("1", "2"):
            link = tmp_path / "snapshots" / snapshot / f"s{blob}.parquet"
            link.symlink_to(blobs / blob)

    names = find_shards(str(tmp_path / "snapshots"))[2]

    assert names == ["r1/s1.parquet", "r1/s2.parquet"]


def test_of_a_file_and_a_link_to_it_the_file_is_taken(folder: Path) -> None:
    (folder / "latest.parquet").symlink_to(folder / NAMES[2])

    assert find_shards(str(folder))[2] == NAMES


def test_a_glob_of_folders_takes_what_is_in_them(folder: Path) -> None:
    for day in ("date=1", "date=2"):
        shutil.copytree(folder, folder.parent / "parts" / day)

    names = find_shards(f"{folder.parent}/parts/date=*")[2]

    assert names == [f"{day}/{name}" for day in ("date=1", "date=2") for name in NAMES]


@pytest.mark.parametrize("place", ["", "/", f"/{NAMES[0]}", "/*.parquet"])
def test_a_server_that_cannot_send_parts_of_a_file_is_told(folder: Path, place: str) -> None:
    class Plain(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: object) -> None:
            pass

    with (
        serving(Plain) as address,
        pytest.raises(DataError, match=r"shard_\d\.parquet cannot be read in parts .* Fetch it"),
    ):
        make_manifest(f"{address}{place}", "text")


def test_a_name_that_is_no_utf8_is_told(folder: Path) -> None:
    os.rename(os.fsencode(folder / NAMES[0]), os.fsencode(folder) + b"/bad\xff.parquet")

    with pytest.raises(DataError, match=r"name is no UTF-8, 'bad\\udcff\.parquet'. Rename it"):
        find_shards(str(folder))
