"""The table of a sweep."""

from pathlib import Path

import pytest

from nanoray.config import StorageError
from nanoray.ops.trial_table import Status, TrialRow, read_trials, write_trials


def row(**fields):
    """Give a trial with some fields changed."""
    known = {
        "name": "d4-r10-s42-0123abcd",
        "status": Status.DONE,
        "depth": 4,
        "tokens_per_param": 10.0,
        "seed": 42,
        "parameters": 36_700_160,
        "embedding_parameters": 16_777_216,
        "unembedding_parameters": 16_777_216,
        "matrix_parameters": 3_145_728,
        "vocab_size": 65_536,
        "max_seq_len": 2048,
        "head_dim": 128,
        "total_batch_tokens": 524_288,
        "num_steps": 700,
        "tokens": 367_001_600,
        "flops_per_token": 1.447035e8,
        "flops": 5.31e16,
    }
    return TrialRow(**{**known, **fields})


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(bits_per_byte=1.25), row(status=Status.FAILED, reason="no space", core=0.1)]

    write_trials(str(tmp_path), rows)

    assert read_trials(str(tmp_path)) == rows


def test_weights_that_only_look_up_are_not_counted_for_scaling() -> None:
    assert row().scaling_parameters == 36_700_160 - 16_777_216


def test_a_sweep_without_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"holds no trials\.parquet"):
        read_trials(str(tmp_path))


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "trials.parquet").write_bytes(b"PAR1 and no more")

    with pytest.raises(StorageError, match="cannot be read"):
        read_trials(str(tmp_path))
