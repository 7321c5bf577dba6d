"""One shard of the web, brought into a storage: resumed, verified, and there whole or not at all.

What arrives is kept in a local part file, so that a broken connection, Ctrl-C or a crash costs
nothing. Only a part file of the size and SHA-256 that the server names is moved into place.
"""

import contextlib
import email.utils
import errno
import fcntl
import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO

import httpx
from fsspec import AbstractFileSystem

from nanoray.config import DataError, StorageError
from nanoray.data.http_client import open_client
from nanoray.storage import fsync_path, is_local

OTHER_WAY = (
    "If HF_ENDPOINT is set, it must be a mirror of https://huggingface.co. Files that were fetched "
    "in another way are used with --data FOLDER."
)
LONGEST_RETRY_AFTER_SECONDS = 600.0
"""The hub counts requests over five minutes; a server that asks for hours is asked again sooner."""
LOCK_LOOK_SECONDS = 0.2
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class FileKind:
    """What a file should be: without a checksum this alone tells it from a login page."""

    name: str
    is_one: Callable[[BufferedReader, int], bool]
    """Looks at a file that is read from its beginning, and at its size."""


Show = Callable[[int, int | None], None]
"""Is told how many bytes have arrived, and of how many; None where the server does not say."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a download waits for a server, and how often it asks again."""

    stall_seconds: float = 30.0
    """Silence after which an attempt has failed."""
    num_attempts: int = 6
    """Attempts in a row without a new byte after which the download has failed."""
    first_wait_seconds: float = 2.0
    """Before the second attempt; each further wait is twice as long."""
    longest_wait_seconds: float = 60.0

    def wait_seconds(self, failures: int) -> float:
        """Say how long to wait after so many attempts in a row that brought nothing."""
        return min(self.longest_wait_seconds, self.first_wait_seconds * 2 ** max(0, failures - 1))


@dataclass(frozen=True)
class RemoteFile:
    """What a server says of a file; None where it says nothing."""

    num_bytes: int | None
    sha256: str | None


class StoppedError(Exception):
    """The download was told to stop; what has arrived is kept."""


class TryAgainError(Exception):
    """An attempt that failed, and may go well the next time."""

    def __init__(self, problem: str, after_seconds: float = 0.0) -> None:
        super().__init__(problem, after_seconds)
        self.problem, self.after_seconds = problem, after_seconds


class Downloader:
    """Fetches files over one pool of connections; its methods may run in several threads."""

    def __init__(
        self, patience: Patience, say: Callable[[str], None], kind: FileKind | None = None
    ) -> None:
        """Keep how long to wait, whom to tell, and what is fetched: by default parquet files.

        Raises:
            InputError: the environment names a proxy or certificates that cannot be used.
        """
        self.patience, self.say, self.kind = patience, say, kind or PARQUET
        self.stop = threading.Event()
        self.client = open_client(patience.stall_seconds)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def ask(self, url: str) -> RemoteFile:
        """Ask for size and checksum alone.

        Raises:
            DataError: the server refuses, or does not answer.
        """
        return self._insist(url, lambda: self._ask(url), lambda: 0)

    def fetch(self, url: str, part: str, show: Show) -> RemoteFile:
        """Bring a file into an existing part file, after what is in there, and verify it.

        Raises:
            DataError: the server refuses, does not answer, or sends what is not the file.
            StorageError: the part file cannot be written.
            StoppedError: `stop` was set.
        """
        problem: str | None = None
        for _ in range(2):
            remote = self._insist(
                url, lambda: self._transfer(url, part, show), lambda: os.path.getsize(part)
            )
            problem = find_problem(part, remote, self.kind)
            if problem is None:
                return remote
            # The beginning of an older version of the file, or a byte that fell over on the way:
            # nothing says where, so all of it is fetched anew, once.
            self.say(f"{short_name(url)} came out wrong: {problem}")
            os.truncate(part, 0)
        os.remove(part)
        raise DataError(
            f"{url} came out wrong twice ({problem}). Something between here and there changes the "
            f"file: try another network. {OTHER_WAY}"
        )

    def _insist(
        self, url: str, attempt: Callable[[], RemoteFile], arrived: Callable[[], int]
    ) -> RemoteFile:
        """Attempt again and again; only attempts that bring no new byte are counted."""
        most, failures = arrived(), 0
        while True:
            try:
                return attempt()
            except httpx.RequestError as error:
                problem, after_seconds = self._explain(error), 0.0
            except TryAgainError as error:
                problem, after_seconds = error.problem, error.after_seconds
            # New is what no attempt had: a server that knows no Range and always breaks off at the
            # same place brings bytes for ever, and nothing new.
            failures = 0 if arrived() > most else failures + 1
            most = max(most, arrived())
            if failures >= self.patience.num_attempts:
                raise DataError(
                    f"{url} could not be fetched: {problem}, {failures} times in a row. What has "
                    f"arrived is kept: the same command goes on from there. {OTHER_WAY}"
                )
            if self.stop.is_set():  # closing the connections is what broke this one
                raise StoppedError
            wait = max(after_seconds, self.patience.wait_seconds(failures))
            self.say(f"{short_name(url)}: {problem}; asking again in {wait:.0f} s")
            if self.stop.wait(wait):
                raise StoppedError

    def _explain(self, error: httpx.RequestError) -> str:
        """Say what went wrong on the way."""
        if isinstance(error, httpx.TimeoutException):
            return f"nothing came for {self.patience.stall_seconds:g} s"
        return str(error) or type(error).__name__

    @contextlib.contextmanager
    def _get(self, url: str, byte_range: str | None) -> Iterator[httpx.Response]:
        """Begin to read; the body is still to come."""
        headers = {} if byte_range is None else {"Range": f"bytes={byte_range}"}
        with self.client.stream("GET", url, headers=headers) as response:
            check_status(response, url)
            yield response

    def _ask(self, url: str) -> RemoteFile:
        """Ask once. By GET, since signed addresses, to which the hub redirects, may refuse HEAD."""
        with self._get(url, "0-0") as response:
            return read_headers(response)

    def _transfer(self, url: str, part: str, show: Show) -> RemoteFile:
        """Fetch what the part file does not have yet; raises unless all of it came."""
        offset = os.path.getsize(part)
        with self._get(url, f"{offset}-" if offset else None) as response:
            remote = read_headers(response)
            if response.status_code != 416:
                self._append(response, part, offset, lambda n: show(n, remote.num_bytes))
            elif remote.num_bytes is None:
                os.truncate(part, 0)
                raise TryAgainError("the server does not say how long the file is")
        arrived = os.path.getsize(part)
        if remote.num_bytes is not None and arrived < remote.num_bytes:
            raise TryAgainError(f"the answer ended at {arrived:,} of {remote.num_bytes:,} bytes")
        return remote

    def _append(
        self, response: httpx.Response, part: str, offset: int, show: Callable[[int], None]
    ) -> None:
        """Write the body after `offset`, or over it where the server knows no Range."""
        arrived = offset if response.status_code == 206 else 0
        sent = response.headers.get("content-range", "")
        if response.status_code == 206 and not sent.startswith(f"bytes {offset}-"):
            raise TryAgainError(
                f"the server sent {sent or 'an unnamed range'} instead of bytes {offset}-"
            )
        try:
            with open(part, "r+b") as file:
                file.seek(arrived)
                file.truncate()
                for chunk in response.iter_raw():
                    if self.stop.is_set():
                        raise StoppedError
                    file.write(chunk)
                    arrived += len(chunk)
                    show(arrived)
        except OSError as error:
            raise StorageError(
                f"{part} cannot be written ({error.strerror}). Free some space, or give another "
                "--storage."
            ) from error


def short_name(path: str) -> str:
    """Give the last part of an address or path, for lines of which there may be many."""
    return path.rpartition("/")[2]


def check_status(response: httpx.Response, url: str) -> None:
    """Raise `TryAgainError` for what may pass, `DataError` for what will not."""
    status = response.status_code
    if status in (200, 206, 416):
        return
    answer = f"the server answered {status} {response.reason_phrase}".rstrip()
    if status in (408, 425, 429) or status >= 500:
        raise TryAgainError(answer, retry_after_seconds(response.headers))
    raise DataError(f"{url} cannot be fetched: {answer}. {OTHER_WAY}")


def retry_after_seconds(headers: httpx.Headers) -> float:
    """Read how long the server wants to be left alone: Retry-After, or the hub's RateLimit."""
    value = headers.get("retry-after", "").strip()
    reset = re.search(r"\bt=(\d+)", headers.get("ratelimit", ""))
    seconds = float(reset[1]) if reset else 0.0
    if value.isdigit():
        seconds = float(value)
    elif value:
        with contextlib.suppress(ValueError):  # a date that is none: as if there were no header
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)


def read_headers(response: httpx.Response) -> RemoteFile:
    """Read size and checksum from the answer, and from the redirects that led to it.

    The hub names both in its redirect; the store that it redirects to knows only the size.
    """
    answers = [*response.history, response]
    etags = [a.headers["x-linked-etag"] for a in answers if "x-linked-etag" in a.headers]
    linked = [a.headers["x-linked-size"] for a in answers if "x-linked-size" in a.headers]
    # Of a small file, which is no LFS file, the hub gives Git's SHA-1: not a checksum of the bytes.
    sha256 = re.fullmatch(r'"?([0-9a-f]{64})"?', etags[0]) if etags else None
    size = linked[0] if linked else response.headers.get("content-range", "").rpartition("/")[2]
    if not size and response.status_code == 200:
        size = response.headers.get("content-length", "")
    return RemoteFile(int(size) if size.isdigit() else None, sha256[1] if sha256 else None)


def sha256_of(file: BufferedReader) -> str:
    """Hash a file from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def find_problem(part: str, remote: RemoteFile, kind: FileKind) -> str | None:
    """Say in what a part file differs from the file that the server has; None if in nothing."""
    num_bytes = os.path.getsize(part)
    if remote.num_bytes is not None and num_bytes != remote.num_bytes:
        return f"it has {num_bytes:,} bytes, not {remote.num_bytes:,}"
    with open(part, "rb") as file:
        if remote.sha256 is None:
            return None if kind.is_one(file, num_bytes) else f"it is no {kind.name}"
        sha256 = sha256_of(file)
    return None if sha256 == remote.sha256 else f"its SHA-256 is {sha256}, not {remote.sha256}"


def is_parquet(file: BufferedReader, num_bytes: int) -> bool:
    """Look for what every parquet file begins and ends with, and no network's login page does."""
    if num_bytes < 2 * len(PARQUET_MAGIC) or file.read(len(PARQUET_MAGIC)) != PARQUET_MAGIC:
        return False
    file.seek(-len(PARQUET_MAGIC), os.SEEK_END)
    return file.read() == PARQUET_MAGIC


PARQUET = FileKind("parquet file", is_parquet)


def part_file(fs: AbstractFileSystem, target: str) -> str:
    """Name the local file that grows until it can be moved to `target`, the same at every start.

    It is beside a local target. For an object store it is in the machine's folder for temporary
    files, since an object cannot grow.
    """
    if is_local(fs):
        return f"{target}.part"
    folder, _, name = target.rpartition("/")
    place = hashlib.sha256(fs.unstrip_protocol(folder).encode()).hexdigest()[:16]
    return os.path.join(tempfile.gettempdir(), f"nanoray-{os.getuid()}", place, f"{name}.part")


@contextlib.contextmanager
def own_part(part: str, stop: threading.Event, say: Callable[[str], None]) -> Iterator[None]:
    """Create a part file if there is none, and keep other processes from writing to it.

    The lock is on the part file itself: the system lets go of it when its process dies, however it
    dies, and no lock file is left behind.
    """
    os.makedirs(os.path.dirname(part), exist_ok=True)
    said = False
    while not stop.is_set():
        with open(part, "ab") as file:
            locked = _lock(file)
            if locked and _is_at(file, part):
                yield
                return
        if not locked and not said:
            say(f"another process is at {short_name(part)}; waiting for it")
            said = True
        stop.wait(LOCK_LOOK_SECONDS)
    raise StoppedError


def _is_at(file: BinaryIO, path: str) -> bool:
    """Say whether an open file still has this name.

    The one who had the lock may have moved the file into place. Then the lock is on the finished
    file, and another process may already be at the next part file.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file: BinaryIO) -> bool:
    """Try to lock a file; where the filesystem has no locks, the checksum alone must do."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    return True


def put_in_place(part: str, fs: AbstractFileSystem, target: str) -> None:
    """Move a verified part file to where it belongs; it is seen there whole or not at all.

    Raises:
        StorageError: the storage does not take it.
    """
    try:
        if is_local(fs):
            fsync_path(part)
            os.replace(part, target)
            fsync_path(os.path.dirname(target))
            return
        fs.put_file(part, target)
    except Exception as error:  # each filesystem has its own errors; all mean the same here
        reason = str(error) or type(error).__name__
        raise StorageError(
            f"{target} cannot be written ({reason}). Free some space, or give another --storage."
        ) from error
    os.remove(part)
