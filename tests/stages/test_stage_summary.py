"""What a user is told at the end of a run."""

import shlex
import sys

import pytest

from nanoray.stages.stage_summary import median, resume_command


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py", "--data", "a folder/*.parquet"])

    assert shlex.split(resume_command()) == ["python", *sys.argv]


def test_the_first_tenth_of_a_run_does_not_count() -> None:
    assert median([900.0, *[float(n) for n in range(1, 20)]]) == 10.5
    assert median([7.0]) == 7.0
