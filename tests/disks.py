"""Filesystems of their own, which may be filled without harm to the machine's."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def own_filesystem(folder: Path, size: str) -> Iterator[Path]:
    """Mount a filesystem of a size, as 64k or 300m, until the end of the block."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a filesystem of its own needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
