"""Files of training data, read again for as long as their storage fails.

Arrow has the same error for bytes that make no sense and for storage that fails. What fails is
therefore dealt with below Arrow, and what Arrow says is about the bytes.
"""

from types import TracebackType
from typing import BinaryIO, Self

from fsspec import AbstractFileSystem

from nanoray.config import DataError
from nanoray.storage import with_patience


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
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path} cannot be read ({reason}). Mend that, or give other files."
            ) from error
        return opened

    return PatientFile(with_patience(open_once, seconds, path), path, seconds)
