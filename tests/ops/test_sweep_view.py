"""A sweep as a person sees it."""

import io

from rich.console import Console

from nanoray.ops.sweep_view import Shown, as_table, tell
from nanoray.ops.trial_table import Status
from tests.ops.test_trial_table import row


def printed(*shown: Shown) -> list[str]:
    """Give the lines of a table without colours."""
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(as_table(shown))
    return console.export_text().splitlines()


def test_every_trial_has_its_line() -> None:
    done = Shown(row(status=Status.DONE, bits_per_byte=1.23456, name="d4-r10"), 700, 90.0)
    waiting = Shown(row(status=Status.WAITING, name="d6-r10"), 0, 0.0)

    head, first, second = printed(done, waiting)

    assert head.split()[:3] == ["trial", "step", "tokens"]
    assert first.split() == [
        "d4-r10",
        "done",
        "700/700",
        "3.67e+08",
        "5.31e+16",
        "1.2346",
        *["2", "min"],
    ]
    assert second.split() == ["d6-r10", "waiting", "0/700", "3.67e+08", "5.31e+16"]


def test_core_has_a_column_once_it_is_measured() -> None:
    measured = Shown(row(bits_per_byte=1.0, core=0.2219), 700, 90.0)

    assert "CORE" not in printed(Shown(row(bits_per_byte=1.0), 700, 90.0))[0]
    head, line = printed(measured)
    assert "CORE" in head
    assert "0.2219" in line


def test_a_change_is_told_in_one_line_with_its_reason() -> None:
    failed = row(status=Status.FAILED, reason="the disk is full", name="d4-r10")
    done = row(status=Status.DONE, bits_per_byte=1.25, name="d4-r10")

    assert tell(Shown(failed, 3, 0.0)) == "d4-r10: failed: the disk is full"
    assert tell(Shown(done, 3, 30.0)) == "d4-r10: done after 30 s, 1.2500 bits per byte"
