"""Trials on Ray Tune; whole sweeps are in test_sweep.py."""

from nanoray.ops.tune_trials import last_line


def test_of_an_error_its_last_line_is_kept() -> None:
    error = ValueError("first line\nand more")

    assert last_line(error) == "and more"
    assert last_line(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"
