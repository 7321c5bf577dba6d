"""Packed units that several runs share."""

from pathlib import Path

import numpy as np
import pytest

from nanoray.data.manifest import make_manifest
from nanoray.data.packing import PackedUnit
from nanoray.data.plan import DataPlan
from nanoray.data.unit_cache import UnitCache
from tests.support import embedded_text, tiny_tokenizer, write_parquet


def packed(rows: list[list[int]]) -> PackedUnit:
    """Give a unit with some numbers beside its rows."""
    return PackedUnit(np.array(rows, np.int32), 11, 2, {"cut": 3})


@pytest.mark.parametrize("rows", [[[1, 65_535]], [[1, 65_536]], [[~5, 7]]])
def test_a_unit_is_given_back_as_it_was_kept(tmp_path: Path, rows: list[list[int]]) -> None:
    cache = UnitCache(str(tmp_path))

    cache.save("plan/unit", packed(rows))
    found = cache.load("plan/unit")

    assert found is not None
    assert found.rows.dtype == np.int32
    assert found.rows.tolist() == rows
    assert (found.num_tokens, found.num_dropped, found.counts) == (11, 2, {"cut": 3})


def test_a_unit_that_nobody_has_packed_is_not_there(tmp_path: Path) -> None:
    assert UnitCache(str(tmp_path)).load("plan/unit") is None


@pytest.mark.parametrize("damage", [b"", b"PK and no more", None])
def test_a_damaged_file_is_left_alone_with_a_warning(
    tmp_path: Path, damage: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    cache = UnitCache(str(tmp_path))
    cache.save("unit", packed([[1, 2, 3, 4]] * 100))
    file = tmp_path / "unit.npz"
    whole = bytearray(file.read_bytes())
    whole[200] ^= 255
    file.write_bytes(bytes(whole) if damage is None else damage)

    assert cache.load("unit") is None
    assert "packed again" in caplog.text


def test_plans_that_differ_in_the_seed_share_their_units_and_others_do_not(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", "a.parquet", [embedded_text(20_000)[i::9] for i in range(9)])
    manifest, cache = make_manifest(str(tmp_path / "data"), "text"), tmp_path / "units"

    def kept(max_seq_len: int, seed: int) -> set[str]:
        plan = DataPlan(
            manifest,
            tiny_tokenizer(),
            max_seq_len=max_seq_len,
            packing="bestfit",
            seed=seed,
            cache=UnitCache(str(cache)),
        )
        plain = DataPlan(
            manifest, tiny_tokenizer(), max_seq_len=max_seq_len, packing="bestfit", seed=seed
        )
        for position in range(len(plan.units)):
            assert np.array_equal(plan.pack(position).rows, plain.pack(position).rows)
            assert np.array_equal(plan.pack(position).rows, plain.pack(position).rows)
        assert plan.hash == plain.hash
        return {str(path) for path in cache.rglob("*.npz")}

    first = kept(64, seed=0)
    assert first
    assert kept(64, seed=1) == first
    assert len(kept(32, seed=0)) == 2 * len(first)
