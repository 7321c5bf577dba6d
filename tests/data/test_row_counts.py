from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nanoray.data.manifest import make_manifest
from nanoray.data.mixture import CONVERSATION_COLUMN, Part
from nanoray.data.plan import DataPlan
from nanoray.data.row_counts import ROWS, TOKENS, count_rows
from tests.data.test_mixture import Numbers, write
from tests.driver import connected
from tests.running import Cluster
from tests.support import tiny_tokenizer


@pytest.mark.cluster
def test_rows_are_counted_as_they_are_packed(ray_cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path, Part(Numbers("a", 900)))
    manifest = replace(make_manifest(str(tmp_path), CONVERSATION_COLUMN), unit_bytes=4000)
    plan = DataPlan(manifest, tiny_tokenizer(), max_seq_len=32, packing="chat-all", seed=0)
    assert len(plan.units) > 5

    with connected(ray_cluster):
        counted = count_rows(plan)

    packed = [plan.pack_unit(unit) for unit in plan.units]
    expected = sum((Counter(unit.counts) for unit in packed), Counter[str]())
    assert counted[ROWS] == sum(len(unit.rows) for unit in packed)
    assert counted[TOKENS] == sum(unit.num_tokens for unit in packed)
    assert all(counted[name] == count for name, count in expected.items())
