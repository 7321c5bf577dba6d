"""What a sweep has measured: one row per trial, kept as a parquet file beside the trials."""

import dataclasses
import enum
import io
import types
import typing
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from nanoray.config import FORMAT_VERSION, StorageError
from nanoray.storage import open_location, write_file

TABLE_FILE = "trials.parquet"
SWEEP_FILE = "sweep.json"
"""What the trials of a sweep have in common, as it began, and their configs."""


class Status(enum.StrEnum):
    """How a trial stands."""

    DONE = "done"
    RUNNING = "running"
    WAITING = "waiting"
    FAILED = "failed"
    DIVERGED = "diverged"
    STOPPED = "stopped"
    """By the budget of its sweep, before it began or on its way."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial: what was asked for, what it was, what came of it."""

    name: str
    """Of its run, in the storage that the sweep's folder is."""
    status: Status
    reason: str = ""
    """Why it failed, diverged or stopped, in one sentence."""
    depth: int
    tokens_per_param: float
    """All parameters are counted, as in --tokens-per-param."""
    seed: int
    parameters: int
    """All weights."""
    embedding_parameters: int
    unembedding_parameters: int
    matrix_parameters: int
    """Of the transformer's blocks."""
    vocab_size: int
    max_seq_len: int
    head_dim: int
    total_batch_tokens: int
    num_steps: int
    tokens: int
    flops_per_token: float
    flops: float
    """Forward and backward over all steps, those taken over from a trunk too."""
    bits_per_byte: float | None = None
    """Of the validation text, after the last step."""
    core: float | None = None
    """CORE after the last step, where the sweep has measured it."""
    is_core_sample: bool = False
    """CORE was measured on some of the examples only."""
    steps_taken_over: int = 0
    """Steps at the beginning that a longer trial of the same depth has made."""
    device: str = "cpu"
    """What a worker computes on: "cpu", or the GPU's name."""
    num_workers: int = 1
    worker_seconds: float = 0.0
    """Time of its own steps, times the workers."""
    tokens_per_second: float = 0.0
    """Median, over all workers."""
    peak_memory_bytes: int = 0
    """Most that a worker has used."""

    @property
    def scaling_parameters(self) -> int:
        """Weights that multiply: matrices and unembedding, nanochat's count for scaling laws."""
        return self.matrix_parameters + self.unembedding_parameters


def columns() -> dict[str, pa.DataType]:
    """Give the parquet type of each column."""
    kinds = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    hints = typing.get_type_hints(TrialRow)
    found: dict[str, pa.DataType] = {}
    for field in dataclasses.fields(TrialRow):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(part for part in typing.get_args(kind) if part is not type(None))
        found[field.name] = kinds[str if kind is Status else kind]
    return found


def write_trials(sweep: str, rows: list[TrialRow]) -> None:
    """Write the table of a sweep into its folder, whole or not at all."""
    fs, folder = open_location(sweep)
    schema = pa.schema(list(columns().items()), {"format_version": str(FORMAT_VERSION)})
    table = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema)
    content = io.BytesIO()
    pq.write_table(table, content)
    write_file(fs, f"{folder}/{TABLE_FILE}", content.getvalue())


def read_trials(sweep: str) -> list[TrialRow]:
    """Read the table of a sweep.

    Args:
        sweep: its folder or address.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    fs, folder = open_location(sweep)
    try:
        content = fs.cat_file(f"{folder}/{TABLE_FILE}")
    except FileNotFoundError as error:
        raise StorageError(
            f"{sweep} holds no {TABLE_FILE}. Give the name of a sweep that jobs/sweep.py has made."
        ) from error
    try:
        saved = pq.read_table(io.BytesIO(content)).to_pylist()
    except pa.ArrowInvalid as error:
        raise StorageError(
            f"{sweep}/{TABLE_FILE} cannot be read ({error}). The same sweep writes it anew."
        ) from error
    known = columns()
    rows = [{name: value for name, value in row.items() if name in known} for row in saved]
    return [TrialRow(**{**row, "status": Status(row["status"])}) for row in rows]
