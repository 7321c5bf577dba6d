"""Files of the web that are fetched once and then kept for all runs of this user."""

import hashlib
import logging
import os
import zipfile
from io import BufferedReader

from nanoray.config import DataError
from nanoray.credentials import without_secrets
from nanoray.data.download import Downloader, FileKind, Patience, own_part, part_file, put_in_place
from nanoray.storage import open_location

logger = logging.getLogger(__name__)


def is_zip(file: BufferedReader, num_bytes: int) -> bool:
    """Look for the directory at the end of a zip file."""
    return zipfile.is_zipfile(file)


def is_plain_text(file: BufferedReader, num_bytes: int) -> bool:
    """Tell plain text from a page."""
    return num_bytes > 0 and not file.read(100).lstrip().startswith(b"<")


ZIP = FileKind("zip file", is_zip)
PLAIN_TEXT = FileKind("plain text", is_plain_text)


def cache_folder() -> str:
    """Give where fetched files are kept: below XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "nanoray")


def fetch_once(url: str, kind: FileKind, other_way: str, patience: Patience | None = None) -> str:
    """Give the path of a file of the web; it is fetched if it is not there yet.

    A download that was cut off goes on where it stopped.

    Args:
        url: its address.
        kind: what it must be.
        other_way: what the user can do who cannot fetch it.
        patience: with the server.

    Raises:
        DataError: it cannot be fetched.
    """
    # The address is in the name: a file of the same name from elsewhere is another file.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{url.rpartition('/')[2]}"
    target = os.path.join(cache_folder(), name)
    if os.path.exists(target):
        return target
    fs, path = open_location(target)
    part = part_file(fs, path)
    logger.info("fetching %s", without_secrets(url))
    downloader = Downloader(patience or Patience(), logger.info, kind)
    try:
        with own_part(part, downloader.stop, logger.info):
            if os.path.exists(target):  # another process has fetched it meanwhile
                os.remove(part)
            else:
                downloader.fetch(url, part, lambda arrived, total: None)
                put_in_place(part, fs, path)
    except DataError as error:
        raise DataError(f"{error} {other_way}") from error
    finally:
        downloader.close()
    return target
