"""The data and the tokenizer of a run: what the driver expects, and what a node sees of it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fsspec import AbstractFileSystem

from nanoray.cluster import connection
from nanoray.config import InputError
from nanoray.data.datasets import (
    BYTES_PER_TOKEN,
    DATASETS,
    EMBEDDED,
    dataset_folder,
    shards_for,
)
from nanoray.data.manifest import Manifest, check_unchanged, make_manifest
from nanoray.stages.pretrain_config import PretrainConfig, budget, model_config
from nanoray.storage import StageFolder, open_location, read_json
from nanoray.text.tokenizer_file import load_tokenizer
from nanoray.train.checkpoint_files import committed_steps, read_state

LISTERS = 16


@dataclass(frozen=True)
class ExpectedData:
    """The shards of a run, as the driver sees them."""

    address: str
    sizes: Mapping[str, int]
    """Bytes of each file, by its path under the address."""
    text_bytes: int
    was_saved: bool
    """The run has begun with them."""
    to_fetch: int = 0
    """Shards of a named dataset that are fetched when the run begins."""


@dataclass(frozen=True)
class DataFacts:
    """What a node sees of the expected shards."""

    missing: tuple[str, ...] = ()
    different: tuple[str, ...] = ()
    """Of another size."""
    error: str | None = None
    """Why the node could not look."""


@dataclass(frozen=True)
class TokenizerFacts:
    """Every tokenizer that has a part in a run; None for those that are not there."""

    named: str | None = None
    """Hash of what --tokenizer names."""
    kept: str | None = None
    """Hash of what the run has."""
    of_checkpoint: str | None = None
    """Hash that the newest checkpoint was trained with."""
    step: int = 0
    """Of that checkpoint."""
    vocab_size: int | None = None
    """Of the one that would be used."""
    error: str | None = None
    """Why one could not be read."""


def expect_data(config: PretrainConfig, folder: StageFolder, storage: str) -> ExpectedData:
    """List the shards of a decided config's run; nothing is fetched.

    Raises:
        InputError: they are not what the run began with, or cannot be used.
    """
    saved = None if config.fresh else read_json(folder.fs, folder.path("manifest.json"))
    address, to_fetch = locate(config, storage)
    if saved is not None:
        manifest = check_unchanged(Manifest.from_json(saved), address)
        to_fetch = 0
    elif to_fetch and not dataset_is_there(config, storage):
        return ExpectedData(address, {}, 0, False, to_fetch)
    else:
        skip = config.skip_bad_shards
        manifest = make_manifest(address, config.text_column, skip_bad_shards=skip)
    fs, root = open_location(manifest.root)
    sizes = sizes_of(fs, root, [shard.path for shard in manifest.shards])
    text_bytes = sum(shard.num_bytes for shard in manifest.shards)
    return ExpectedData(manifest.root, sizes, text_bytes, saved is not None, to_fetch)


def locate(config: PretrainConfig, storage: str) -> tuple[str, int]:
    """Give the address of the data, and how many shards of a named dataset are not there yet."""
    if config.data is None:
        return EMBEDDED, 0
    if config.data not in DATASETS:
        return connection.absolute_address(config.data), 0
    dataset = DATASETS[config.data]
    num_bytes = budget(config, model_config(config)).tokens * BYTES_PER_TOKEN
    names = [dataset.shard_name.format(index=i) for i in shards_for(dataset, num_bytes)]
    folder = dataset_folder(config.data, storage)
    return folder.address, len(folder.missing(names))


def dataset_is_there(config: PretrainConfig, storage: str) -> bool:
    """Say whether any shard of a named dataset has been fetched."""
    assert config.data, "named"
    folder = dataset_folder(config.data, storage)
    return bool(folder.fs.exists(folder.root) and folder.fs.glob(f"{folder.root}/*.parquet"))


def sizes_of(fs: AbstractFileSystem, root: str, paths: list[str]) -> dict[str, int]:
    """Give the sizes of those files that exist."""

    def size(path: str) -> int | None:
        try:
            return int(fs.info(f"{root}/{path}")["size"])
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(LISTERS) as pool:
        found = zip(paths, pool.map(size, paths), strict=True)
        return {path: count for path, count in found if count is not None}


def look_at_data(expected: ExpectedData) -> DataFacts:
    """Compare what this node sees with what the driver saw.

    Errors are part of what is reported: every filesystem has its own.
    """
    try:
        fs, root = open_location(expected.address)
        sizes = sizes_of(fs, root, list(expected.sizes))
    except Exception as error:
        return DataFacts(error=str(error) or type(error).__name__)
    return DataFacts(
        missing=tuple(path for path in expected.sizes if path not in sizes),
        different=tuple(p for p, n in sizes.items() if n != expected.sizes[p]),
    )


def look_at_tokenizer(config: PretrainConfig, folder: StageFolder) -> TokenizerFacts:
    """Read the tokenizers of a run, and the hash that its newest checkpoint names."""
    run = folder.run
    try:
        named = kept = None
        if config.tokenizer is not None:
            named = load_tokenizer(connection.absolute_address(config.tokenizer))
        if not config.fresh and run.fs.exists(run.tokenizer_file):
            kept = load_tokenizer(run.tokenizer_address)
        steps = [] if config.fresh else committed_steps(folder)
        state = read_state(folder, steps[-1]) if steps else {}
    except InputError as error:
        return TokenizerFacts(error=str(error))
    used = kept or named
    return TokenizerFacts(
        named=named.hash if named else None,
        kept=kept.hash if kept else None,
        of_checkpoint=state.get("tokenizer_hash"),
        step=steps[-1] if steps else 0,
        vocab_size=used.vocab_size if used else None,
    )
