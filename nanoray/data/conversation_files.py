"""Conversations from files of the user, JSON lines or parquet, read as they are asked for."""

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from nanoray.config import DataError
from nanoray.data.listing import READ_PATIENCE_SECONDS, files_below, is_folder
from nanoray.data.patient_file import look_patiently
from nanoray.storage import is_local, open_location
from nanoray.task import Example

COLUMN = "messages"
FORMS = (
    'Write one conversation a line, as {"messages": [{"role": "user", "content": "..."}, ...]} or '
    "as the list of messages alone."
)


class File(Protocol):
    """The conversations of one file."""

    def __len__(self) -> int:
        """Give the number of conversations."""
        ...

    def messages(self, index: int) -> Sequence[Mapping[str, Any]]:  # Any: unchecked content
        """Read one conversation."""
        ...

    def where(self, index: int) -> str:
        """Say where in which file a conversation stands."""
        ...


class ConversationFiles:
    """All conversations of some files, in the order of the files' names.

    Roles and contents are not checked here; `nanoray.text.chat.render` does that.
    """

    def __init__(self, name: str, files: Sequence[File]) -> None:
        self.name, self.files = name, list(files)
        self.ends = list(accumulate(len(file) for file in files))

    def __len__(self) -> int:
        """Give the number of conversations."""
        return self.ends[-1]

    def example(self, index: int) -> Example:
        """Read one conversation.

        Raises:
            DataError: it is no JSON, or no list of messages.
        """
        file, position = self._locate(index)
        return Example(file.messages(position))

    def where(self, index: int) -> str:
        """Say where a conversation stands, as in "chats.jsonl line 17"."""
        file, position = self._locate(index)
        return file.where(position)

    def _locate(self, index: int) -> tuple[File, int]:
        """Give the file of a conversation, and its index in the file."""
        if not 0 <= index < len(self):
            raise IndexError(f"conversation {index} of {len(self)}")
        number = bisect_right(self.ends, index)
        return self.files[number], index - (self.ends[number - 1] if number else 0)


class JsonLines:
    """A file with one conversation a line; where each begins is found out once.

    A local file is read again at each line; of another one the bytes are kept.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.content: bytes | None = None if is_local(fs) else fs.cat_file(path)
        self.offsets, self.numbers = array("q"), array("q")
        offset = 0
        with self._open() as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self.offsets.append(offset)
                    self.numbers.append(number)
                offset += len(line)

    def __len__(self) -> int:
        """Give the number of lines that are not empty."""
        return len(self.offsets)

    def messages(self, index: int) -> Sequence[Mapping[str, Any]]:  # Any: unchecked content
        """Parse one line."""
        try:
            value = json.loads(self._line(self.offsets[index]).decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.where(index)} is not JSON ({error}). {FORMS}") from error
        messages = value.get(COLUMN) if isinstance(value, dict) else value
        if not isinstance(messages, list):
            raise DataError(
                f"{self.where(index)} has no list of messages, and is {shortened(value)}. {FORMS}"
            )
        return messages

    def where(self, index: int) -> str:
        """Give the file's name and the number of the line, from 1."""
        return f"{self.name} line {self.numbers[index]}"

    def _line(self, offset: int) -> bytes:
        """Read from an offset to the end of the line."""
        with self._open() as file:
            file.seek(offset)
            return file.readline()

    def _open(self) -> BinaryIO:
        return open(self.path, "rb") if self.content is None else BytesIO(self.content)


class ParquetRows:
    """A file with a column of conversations; read as a table when the first is asked for."""

    def __init__(self, fs: AbstractFileSystem, path: str, name: str) -> None:
        self.fs, self.path, self.name = fs, path, name
        self.column: pa.ChunkedArray | None = None
        self.num_rows = int(self._read(self._count_rows))

    def __len__(self) -> int:
        """Give the number of rows."""
        return self.num_rows

    def messages(self, index: int) -> Sequence[Mapping[str, Any]]:  # Any: unchecked content
        """Convert one row."""
        if self.column is None:
            self.column = self._read(lambda parquet: parquet.read(columns=[COLUMN])[COLUMN])
        try:
            messages = self.column[index].as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(index)} is not UTF-8 ({error}). {FORMS}") from error
        if messages is None:
            raise DataError(f"{self.where(index)} has no messages. Leave the row out.")
        return messages

    def where(self, index: int) -> str:
        """Give the file's name and the number of the row, from 1."""
        return f"{self.name} row {index + 1}"

    def _count_rows(self, parquet: pq.ParquetFile) -> int:
        """Check that there is a column of conversations, and give the number of rows."""
        schema = parquet.schema_arrow
        if COLUMN not in schema.names:
            raise DataError(
                f"{self.name} has no column {COLUMN!r}; it has {', '.join(schema.names)}. Name the "
                f"column of conversations {COLUMN!r}."
            )
        kind = schema.field(COLUMN).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not (is_list and pa.types.is_struct(kind.value_type)):
            raise DataError(
                f"{self.name} holds {kind} in column {COLUMN!r}. Store lists of structs with the "
                "fields role and content."
            )
        return parquet.metadata.num_rows

    def _read(self, read: Callable[[pq.ParquetFile], Any]) -> Any:  # Any: what `read` gives
        """Open the file, and read something of it."""
        try:
            with self.fs.open(self.path) as file:
                return read(pq.ParquetFile(file))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.name} cannot be read as parquet ({error}). Write it anew, or leave it out."
            ) from error


FILE_KINDS: dict[str, Callable[[AbstractFileSystem, str, str], File]] = {
    ".jsonl": JsonLines,
    ".parquet": ParquetRows,
}


def find_conversations(address: str) -> ConversationFiles:
    """Open the .jsonl and .parquet files at an address: a folder, a glob or one file, anywhere.

    Raises:
        DataError: nothing there, no such file, no conversation in them, or a damaged file.
        StorageError: an unknown protocol, one whose package is not installed, or a storage that
        cannot be read.
    """
    fs, root = open_location(address)
    paths = files_at(fs, root, tuple(FILE_KINDS))
    if not paths and not is_glob(root) and not fs.exists(root):
        raise DataError(
            f"{address} does not exist. Give a folder, glob or file of conversations, .jsonl or "
            ".parquet."
        )
    if not paths:
        raise DataError(
            f"{address} has no file that ends in .jsonl or .parquet. Give one that has."
        )
    files = [open_file(fs, path, name_in(root, path)) for path in paths]
    if not any(map(len, files)):
        raise DataError(f"{address} has no conversation. {FORMS}")
    return ConversationFiles(root.rpartition("/")[2], files)


def files_at(fs: AbstractFileSystem, root: str, endings: str | tuple[str, ...] = "") -> list[str]:
    """List the files with some endings in a folder, those behind a glob, or the one; sorted.

    Raises:
        StorageError: the storage cannot be read.
    """
    label = str(fs.unstrip_protocol(root)).removeprefix("file://")
    found = look_patiently(lambda: _find_files(fs, root), READ_PATIENCE_SECONDS, label)
    return sorted(path for path in map(str, found) if path.lower().endswith(endings))


def _find_files(fs: AbstractFileSystem, root: str) -> list[str]:
    """List the files in a folder, those behind a glob, or the one."""
    if fs.isdir(root):
        return files_below(fs, root)
    if fs.isfile(root):
        return [root]
    matches = fs.glob(root, detail=True) if is_glob(root) else {}
    return [path for path in matches if not is_folder(fs, path, matches[path]["type"])]


def is_glob(path: str) -> bool:
    """Say whether a path stands for others."""
    return any(sign in path for sign in "*?[")


def open_file(fs: AbstractFileSystem, path: str, name: str) -> File:
    """Open one file by its ending.

    Raises:
        DataError: it cannot be read, or has no conversations.
    """
    try:
        return FILE_KINDS[path[path.rindex(".") :].lower()](fs, path, name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}). Give files that can.") from error


def name_in(root: str, path: str) -> str:
    """Give the path of a file in the folder that was named; else its last name."""
    inside = path.removeprefix(f"{root}/")
    return inside if inside != path else path.rpartition("/")[2]


def shortened(value: object) -> str:
    """Write the beginning of a JSON value."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
