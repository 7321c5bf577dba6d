"""Where training data come from: the embedded texts, files of the user, or a named public dataset.

A named dataset is fetched shard by shard into the storage, as much of it as is wanted. Its last
shard always comes too: it is the validation part, the same for everybody.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import httpx

from nanoray.config import DATASETS_FOLDER, InputError
from nanoray.data.download import Patience
from nanoray.data.shard_folder import ShardFolder

EMBEDDED = str(Path(__file__).parent / "corpus")
EMBEDDED_WORDS = "embedded"
"""What stands, in place of a file, for the words of the texts that come with nanoray."""
BYTES_PER_TOKEN = 4.8
"""Of text, before there is a tokenizer (nanochat, FineWeb-Edu at 65,536 ids)."""


@dataclass(frozen=True)
class NamedDataset:
    """A public dataset on the Hugging Face hub, in shards that are all about as large."""

    repo: str
    num_shards: int
    text_bytes_per_shard: float = 250e6
    file_bytes_per_shard: float = 100e6
    shard_name: str = "shard_{index:05d}.parquet"

    def urls(self, indices: Iterable[int]) -> dict[str, str]:
        """Give the addresses of shards by their names, on the hub or its mirror at HF_ENDPOINT."""
        names = [self.shard_name.format(index=index) for index in indices]
        base = f"{hub_endpoint()}/datasets/{self.repo}/resolve/main"
        return {name: f"{base}/{name}" for name in names}


DATASETS = {
    "climbmix": NamedDataset("karpathy/climbmix-400b-shuffle", 6543),
    "fineweb-edu": NamedDataset("karpathy/fineweb-edu-100b-shuffle", 1823),
}


def hub_endpoint() -> str:
    """Give HF_ENDPOINT, or the hub's own address.

    Raises:
        InputError: HF_ENDPOINT is no web address.
    """
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        url = httpx.URL(endpoint)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(
            f"HF_ENDPOINT {re.sub('.*@', '***@', endpoint)!r} is no web address. Give one such as "
            "https://huggingface.co, or unset it."
        )
    return endpoint.rstrip("/")


def shards_for(dataset: NamedDataset, num_bytes: float) -> list[int]:
    """Choose the shards for so many bytes of text: the first ones, and the last for validation."""
    num_training = max(1, math.ceil(num_bytes / dataset.text_bytes_per_shard))
    last = dataset.num_shards - 1
    return [*range(min(num_training, last)), last]


def resolve_data(
    data: str | None, storage: str, *, num_bytes: float, locate: Callable[[str], str]
) -> str:
    """Give the address of the parquet files that `--data` stands for; fetches a named dataset.

    Args:
        data: None for the embedded texts, a named dataset, or a path or address.
        storage: where named datasets are kept once they are fetched.
        num_bytes: how much text is wanted of a named dataset.
        locate: makes a path of the user absolute.

    Raises:
        DataError: a shard could not be fetched.
        StorageError: the storage cannot be written, or is too small.
    """
    if data is None:
        return EMBEDDED
    if data not in DATASETS:
        return locate(data)
    return fetch_dataset(data, storage, shards_for(DATASETS[data], num_bytes))


def dataset_folder(name: str, storage: str) -> ShardFolder:
    """Give the folder in which a named dataset is kept."""
    return ShardFolder(storage, f"{DATASETS_FOLDER}/{name}", DATASETS[name].file_bytes_per_shard)


def fetch_dataset(
    name: str,
    storage: str,
    indices: Iterable[int],
    *,
    patience: Patience | None = None,
    stream: TextIO | None = None,
) -> str:
    """Fetch what is missing of these shards, shown on `stream`; gives the address of their folder.

    Raises:
        DataError: a shard could not be fetched.
        StorageError: the storage cannot be written, or is too small.
    """
    folder = dataset_folder(name, storage)
    folder.fetch(DATASETS[name].urls(indices), patience or Patience(), stream)
    return folder.address
