"""Files of training data, read again for as long as their storage fails.

Arrow has the same error for bytes that make no sense and for storage that fails. What fails is
therefore dealt with below Arrow, and what Arrow says is about the bytes.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

from fsspec import AbstractFileSystem

from nanoray.config import DataError, StorageError
from nanoray.storage import with_patience
from nanoray.storage_errors import first_line

T = TypeVar("T")

UNREACHABLE_SECONDS = 10.0
"""How long a server is looked for at first: its address may well be wrong, and a person waits."""
UNREACHABLE = (
    *("ClientConnectorError", "EndpointConnectionError", "ConnectionRefusedError"),
    "ConnectError",
)
"""Errors of client libraries that found no server: a name without address, a closed port."""
REFUSED = (
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"),
    *("ParamValidationError", "PermissionError"),
)
"""Errors, also of libraries that need not be installed, which waiting does not mend."""
PASSING_STATUS = (408, 425, 429)
"""Of the HTTP statuses from 400 to 499, those that mean: not now."""


class PatientFile:
    """A file whose reader sees no outage of the storage that is shorter than `seconds`."""

    def __init__(self, file: BinaryIO, name: str, seconds: float) -> None:
        """Read what is open already; `name` is for messages."""
        self.file, self.name, self.seconds = file, name, seconds

    def read(self, num_bytes: int = -1) -> bytes:
        """Read on from where the file stands.

        Raises:
            StorageError: the storage failed for longer.
        """
        start = self.file.tell()

        def read_from_start() -> bytes:
            self.file.seek(start)
            return self.file.read(num_bytes)

        return with_patience(read_from_start, self.seconds, self.name)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another place; gives it, counted from the beginning."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """Give the place where the file stands."""
        return self.file.tell()

    @property
    def closed(self) -> bool:
        """Say whether nothing can be read any more."""
        return self.file.closed

    def close(self) -> None:
        """Let the file go."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_patiently(fs: AbstractFileSystem, path: str, seconds: float) -> PatientFile:
    """Open a file of training data on any storage.

    Raises:
        DataError: it cannot be opened, and waiting would not help.
        StorageError: the storage failed for longer than `seconds`.
    """

    def open_once() -> BinaryIO:
        try:
            opened: BinaryIO = fs.open(path)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise DataError(
                f"{path} cannot be read ({first_line(error)}). Mend that, or give other files."
            ) from error
        return opened

    return PatientFile(with_patience(open_once, seconds, path), path, seconds)


def look_patiently(look: Callable[[], T], seconds: float, label: str) -> T:
    """Look at a place for the first time, for as long as its storage fails in passing.

    Args:
        look: called until it ends.
        seconds: how long that may take.
        label: the place as it was given, which the text of an error begins with.

    Raises:
        StorageError: the storage failed for longer, does not let us in, or is not there.
    """
    began = time.monotonic()

    def look_once() -> T:
        try:
            return look()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if is_refusal(error):
                raise StorageError(
                    f"{label} may not be read ({reason}). Check the address, and the credentials "
                    "in the environment."
                ) from error
            if is_named(error, UNREACHABLE) and time.monotonic() - began >= UNREACHABLE_SECONDS:
                raise StorageError(
                    f"{label} cannot be reached ({reason}). Check the address and the network."
                ) from error
            raise

    return with_patience(look_once, seconds, label)


def is_refusal(error: Exception) -> bool:
    """Say whether a storage has answered that it does not let us in, or was not asked for that."""
    status = getattr(error, "status", None)  # of aiohttp
    answered = isinstance(status, int) and 400 <= status < 500 and status not in PASSING_STATUS
    return answered or is_named(error, REFUSED)


def is_named(error: Exception, names: tuple[str, ...]) -> bool:
    """Say whether an error, or a class that it is derived from, has one of these names."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
