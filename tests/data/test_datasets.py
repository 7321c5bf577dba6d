import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.config import DataError, InputError
from nanoray.data.datasets import (
    BYTES_PER_TOKEN,
    DATASETS,
    EMBEDDED,
    dataset_folder,
    fetch_dataset,
    hub_endpoint,
    resolve_data,
    shards_for,
)
from nanoray.data.download import Patience
from nanoray.data.listing import find_shards
from nanoray.data.manifest import make_manifest
from tests.hub import Fault, Hub, running_hub

FIRST, LAST = "shard_00000.parquet", "shard_06542.parquet"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"{running.url}/")
        yield running


def resolve(data: str | None, storage: Path, num_bytes: float = 1.0) -> str:
    return resolve_data(
        data, str(storage), num_bytes=num_bytes, locate=lambda path: f"/there/{path}"
    )


def test_the_first_shards_are_chosen_and_the_last():
    dataset = DATASETS["climbmix"]

    assert shards_for(dataset, 1) == [0, 6542]
    assert shards_for(dataset, 250e6) == [0, 6542]
    assert shards_for(dataset, 251e6) == [0, 1, 6542]
    # d34: nanochat fetches 1,703 shards of fineweb-edu for it.
    tokens = 169_150 * 524_288
    assert len(shards_for(DATASETS["fineweb-edu"], tokens * BYTES_PER_TOKEN)) == 1703 + 1


def test_no_dataset_gives_more_than_all_its_shards():
    for dataset in DATASETS.values():
        assert shards_for(dataset, 1e15) == list(range(dataset.num_shards))


def test_without_data_the_embedded_texts_are_meant(tmp_path):
    assert resolve(None, tmp_path) == EMBEDDED


def test_what_is_no_name_of_a_dataset_is_a_path_of_the_user(tmp_path):
    assert resolve("my/texts", tmp_path) == "/there/my/texts"


def test_a_mistyped_name_is_told_what_would_do(tmp_path):
    address = resolve("climbmx", tmp_path)

    with pytest.raises(DataError, match=r"climbmx does not exist.*name of a public dataset"):
        find_shards(address)


def test_a_named_dataset_is_fetched_into_the_storage(hub, tmp_path, capsys):
    address = resolve("climbmix", tmp_path)

    assert address == f"{tmp_path}/datasets/climbmix"
    assert sorted(os.listdir(address)) == ["checksums.json", FIRST, LAST]
    assert (Path(address) / FIRST).read_bytes() == hub.shard(FIRST)
    assert f"{LAST} is there" in capsys.readouterr().err


def test_the_last_shard_of_the_dataset_is_the_validation_part(hub, tmp_path):
    few = make_manifest(resolve("climbmix", tmp_path), "text")
    more = make_manifest(resolve("climbmix", tmp_path, num_bytes=3 * 250e6), "text")

    assert few.validation_shard == more.validation_shard == LAST
    assert len(more.shards) == 4
    assert hub.ranges(LAST) == [None], "it was there"


def test_shards_come_from_the_repository_of_the_dataset(monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)

    urls = DATASETS["climbmix"].urls([0])

    assert urls == {
        FIRST: "https://huggingface.co/datasets/karpathy/climbmix-400b-shuffle/resolve/main/"
        + FIRST
    }


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://mirror", "http://", "http://a:b:c"])
def test_an_endpoint_that_is_no_web_address_is_refused(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    with pytest.raises(InputError, match=r"HF_ENDPOINT .* is no web address"):
        hub_endpoint()


def test_a_shard_that_cannot_be_had_is_named(hub, tmp_path):
    hub.faults[FIRST] = Fault(times=9, status=503)
    patience = Patience(num_attempts=2, first_wait_seconds=0.01)

    with pytest.raises(DataError, match=f"{FIRST} could not be fetched: .*503"):
        fetch_dataset("climbmix", str(tmp_path), [0], patience=patience)

    assert dataset_folder("climbmix", str(tmp_path)).missing([FIRST]) == [FIRST]
