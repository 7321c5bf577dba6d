from pathlib import Path

import pytest

from nanoray.ops import local_cluster
from nanoray.ops.local_cluster import unnoted


@pytest.mark.parametrize("before", [None, "10.0.0.7:6379"])
def test_what_other_commands_find_stays_as_it_was(monkeypatch, tmp_path: Path, before):
    note = tmp_path / "ray_current_cluster"
    monkeypatch.setattr(local_cluster, "CURRENT_CLUSTER", note)
    if before is not None:
        note.write_text(before)

    with unnoted():
        note.write_text("127.0.0.1:1234")

    assert (note.read_text() if note.exists() else None) == before
