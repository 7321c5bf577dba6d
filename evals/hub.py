"""Rows of public datasets, by their names on the Hugging Face hub or from a folder in its place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from nanoray.config import DataError, InputError

PARQUET_REVISION = "refs/convert/parquet"
"""The branch to which the hub converts every dataset, whatever files it was uploaded as."""
SHUFFLE_SEED = 42
"""Rows are in the order that nanochat gives them, so that its first n questions are ours too."""

Row = dict[str, Any]  # Any: a column may be of any type


def read_split(
    dataset: str, config: str, split: str, hub_dir: str | None, *, columns: Sequence[str]
) -> list[Row]:
    """Read some columns of a split, its rows shuffled in the same way every time.

    Args:
        dataset: its public name, as in "allenai/ai2_arc".
        config: the part of it that is wanted, as in "ARC-Easy".
        split: "train", "validation", "test", or what else it has.
        hub_dir: a folder with `<dataset>/<config>/<split>.parquet`; None for the hub itself, where
            HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they always do.
        columns: names; "a.b" is the field b of the column a.

    Raises:
        InputError: the folder does not exist.
        DataError: the split cannot be had, lacks a column, or has no rows.
    """
    table, order = read_table(dataset, config, split, hub_dir, columns=columns)
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{dataset} ({config}, {split}) has text that is not UTF-8 ({error}). Give another "
            "--hub-dir."
        ) from error
    return [rows[index] for index in order]


def read_table(
    dataset: str, config: str, split: str, hub_dir: str | None, *, columns: Sequence[str]
) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """Read what `read_split` reads as a table, for a split too large for Python objects.

    Gives the rows as they are stored, and their order: row i of the split is row `order[i]`.

    Raises:
        InputError: the folder does not exist.
        DataError: the split cannot be had, lacks a column, or has no rows.
    """
    if hub_dir is None:
        files = fetch_split(dataset, config, split)
    else:
        files = [find_split(dataset, config, split, hub_dir)]
    tables = [read_columns(file, columns) for file in files]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"The files of {dataset} ({config}, {split}) do not have the same columns ({error}). "
            "Give a --hub-dir with one file in their place."
        ) from error
    if not table.num_rows:
        raise DataError(
            f"{files[0]} has no rows. Give a --hub-dir in which {dataset} {config} {split} is "
            "filled, or none, to read it from the Hugging Face hub."
        )
    empty = [name for name in table.column_names if table[name].null_count]
    if empty:
        raise DataError(
            f"{files[0]} has rows without {', '.join(empty)}. Give a --hub-dir without them."
        )
    return table, np.random.default_rng(SHUFFLE_SEED).permutation(table.num_rows)


def local_files(dataset: str, config: str, split: str, hub_dir: str | None) -> tuple[str, ...]:
    """Name the files of a split in the folder that stands for the hub; none of the hub's own."""
    return () if hub_dir is None else (str(find_split(dataset, config, split, hub_dir)),)


def find_split(dataset: str, config: str, split: str, hub_dir: str) -> Path:
    """Give the file of a split in a local folder.

    Raises:
        InputError: the folder does not exist.
        DataError: it has no such file.
    """
    folder = Path(hub_dir).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"--hub-dir {hub_dir} is no folder. Give one with files such as "
            f"{dataset}/{config}/{split}.parquet, or none, to read from the Hugging Face hub."
        )
    file = folder / dataset / config / f"{split}.parquet"
    if not file.is_file():
        raise DataError(
            f"{file} is missing. Put the {split} split of {dataset} ({config}) there, or leave "
            "--hub-dir out, to read it from the Hugging Face hub."
        )
    return file


def fetch_split(dataset: str, config: str, split: str) -> list[Path]:
    """Fetch the files of a split from the hub, and give them in order; those in its cache are kept.

    What was fetched once is used without a network too.

    Raises:
        DataError: the hub cannot be reached, or has no such split.
    """
    try:
        folder = snapshot_download(
            dataset,
            repo_type="dataset",
            revision=PARQUET_REVISION,
            allow_patterns=f"{config}/{split}/*.parquet",
        )
    except Exception as error:  # of the hub, of HTTP, of the disk; all mean the same here
        reason = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        raise DataError(
            f"{dataset} ({config}, {split}) cannot be fetched from the Hugging Face hub "
            f"({reason}). Try again, or give --hub-dir FOLDER with "
            f"{dataset}/{config}/{split}.parquet."
        ) from error
    files = sorted(Path(folder, config, split).glob("*.parquet"))
    if not files:
        raise DataError(
            f"{dataset} has no split {split!r} of {config!r} on the Hugging Face hub. Give "
            f"--hub-dir FOLDER with {dataset}/{config}/{split}.parquet."
        )
    return files


def read_columns(file: str | os.PathLike[str], columns: Sequence[str]) -> pa.Table:
    """Read some columns of one parquet file.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            names = [*schema.names, *schema.empty_table().flatten().column_names]
            missing = [name for name in columns if name not in names]
            # Must be looked for, because pyarrow leaves out what is not there.
            if not missing:
                return parquet.read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file} cannot be read as parquet ({error}). Replace it, or give another --hub-dir."
        ) from error
    raise DataError(
        f"{file} has no column {', '.join(missing)}; its columns are {', '.join(schema.names)}. "
        "Give a --hub-dir whose files have the columns of the Hugging Face hub."
    )
