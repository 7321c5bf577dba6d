"""Packed units kept on storage, so that runs over the same data tokenize each of them once.

A unit's rows are a pure function of the unit, the tokenizer and the packing; whoever needs them
first writes them down, and a file that is damaged is made again.
"""

import io
import logging
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from nanoray.data.packing import PackedUnit
from nanoray.storage import open_location, write_file

logger = logging.getLogger(__name__)

SMALL_IDS = np.iinfo(np.uint16).max
COUNT = "count/"


@dataclass(frozen=True)
class UnitCache:
    """Packed units in a folder, each under a name that says what it was made from."""

    address: str
    """Folder, or address in a storage."""

    def load(self, name: str) -> PackedUnit | None:
        """Give a unit that was packed before; None where it was not, or cannot be read."""
        fs, path = open_location(f"{self.address}/{name}.npz")
        try:
            with np.load(io.BytesIO(fs.cat_file(path)), allow_pickle=False) as saved:
                return PackedUnit(
                    saved["rows"].astype(np.int32),
                    int(saved["num_tokens"]),
                    int(saved["num_dropped"]),
                    {key[len(COUNT) :]: int(saved[key]) for key in saved if key.startswith(COUNT)},
                )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            logger.warning("%s cannot be used (%s); the unit is packed again", path, error)
            return None

    def save(self, name: str, packed: PackedUnit) -> None:
        """Keep a packed unit; where that fails, the next run has to pack it again."""
        fs, path = open_location(f"{self.address}/{name}.npz")
        rows = packed.rows
        if not rows.size or (rows.min() >= 0 and rows.max() <= SMALL_IDS):
            rows = rows.astype(np.uint16)
        counts = {f"{COUNT}{key}": np.int64(value) for key, value in packed.counts.items()}
        numbers = {"num_tokens": packed.num_tokens, "num_dropped": packed.num_dropped}
        content = io.BytesIO()
        np.savez(content, rows=rows, **numbers, **counts)  # type: ignore[arg-type]  # any array
        try:
            write_file(fs, path, content.getvalue())
        except Exception as error:  # each filesystem has its own errors
            logger.warning("%s cannot be written (%s)", path, error)
