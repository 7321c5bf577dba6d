"""What the tests of sandboxes and of the grader share: a watch for what they leave behind."""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from nanoray.inference.sandbox import strongest_level

PR_SET_CHILD_SUBREAPER = 36

needs_strong = pytest.mark.skipif(
    strongest_level() != "strong", reason="needs a kernel with Landlock and seccomp"
)


@contextmanager
def no_trace_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have sandboxes make their folders in an empty one, and fail if anything of them is left."""
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    adopt_orphans(True)
    this = psutil.Process()
    processes, num_fds = set(this.children(recursive=True)), this.num_fds()

    yield

    left = [child for child in this.children(recursive=True) if child not in processes]
    adopt_orphans(False)
    assert (left, this.num_fds(), os.listdir(folder)) == ([], num_fds, [])


def adopt_orphans(yes: bool) -> None:
    """Become the parent of descendants whose own parent ends, so that none is out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(yes), 0, 0, 0)
