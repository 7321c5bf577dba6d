"""Errors of storage in a sentence, for jobs to which nothing is left but to end."""

import contextlib
import traceback
from collections.abc import Iterator

from nanoray.config import StorageError
from nanoray.credentials import without_secrets
from nanoray.storage import STORAGE_CLIENTS, is_outage

FILESYSTEMS = {"fsspec", "s3fs", "gcsfs", "adlfs"}
"""Packages through which storage is reached."""


def describe(error: BaseException) -> str:
    """Say in a line what an error is, without the credentials that libraries put into its text."""
    text = " ".join(str(error).split())
    return without_secrets(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def first_line(error: BaseException) -> str:
    """Give the first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def told_in_a_sentence(place: str) -> Iterator[None]:
    """Turn what storage fails with into a `StorageError`; a reader that left is no storage.

    Args:
        place: the storage, for the text.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if not is_outage(error):
            raise
        raise StorageError(
            f"{place} cannot be used ({describe(error)}). "
            "See to the address, its credentials and the network."
        ) from error


def sentence_of(error: BaseException) -> str | None:
    """Say what remote storage failed with; None for every other error.

    An OSError alone may as well be a fault of ours, and so may be a file that is not there, or a
    library that something else than storage has called.
    """
    modules = {
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    kinds = {type(one).__module__.partition(".")[0] for one in (error, error.__cause__)}
    if not (modules & FILESYSTEMS and kinds & STORAGE_CLIENTS):
        return None
    if isinstance(error, FileNotFoundError):
        return None
    return (
        f"The storage cannot be used ({describe(error)}). See to the address, its credentials and "
        "the network; then give the same command again."
    )
