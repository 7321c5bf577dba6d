"""Which files an address means: a folder and those below it, a glob, or a single file.

Hidden files are no data, nor is what lies in hidden folders: names that begin with `.` or `_`, as
Spark, Hive and Arrow have it too. They are left out below a folder alone; what is named is taken.
"""

import os

from fsspec import AbstractFileSystem

from nanoray.config import DataError
from nanoray.data.patient_file import look_patiently
from nanoray.storage import is_local, open_location

READ_PATIENCE_SECONDS = 60.0
"""How long a storage may fail before the data are given up: nothing has begun yet."""
HIDDEN = (".", "_")


def find_shards(address: str) -> tuple[AbstractFileSystem, str, list[str]]:
    """Give filesystem, root (with protocol) and the sorted relative paths of the parquet files.

    Raises:
        DataError: no such place, or no parquet file in it.
        StorageError: the storage cannot be read now.
    """
    fs, path = open_location(address)
    label = f"--data {address}"
    found = look_patiently(lambda: _find_paths(fs, path), READ_PATIENCE_SECONDS, label)
    if found is None:
        raise DataError(
            f"{label} does not exist. Give a folder or glob of parquet files, an address "
            "such as s3://bucket/folder, or the name of a public dataset."
        )
    root, paths = found
    if not paths:
        raise DataError(
            f"{label} has no file that ends in .parquet, or none that is not hidden (a name that "
            "begins with . or _). Give one that has."
        )
    relative = sorted(found.removeprefix(root).lstrip("/") for found in paths)
    odd = [name for name in relative if not is_utf8(name)]
    if odd:
        raise DataError(f"{label} has a file whose name is no UTF-8, {odd[0]!r}. Rename it.")
    return fs, root if is_local(fs) else fs.unstrip_protocol(root), relative


def _find_paths(fs: AbstractFileSystem, path: str) -> tuple[str, set[str]] | None:
    """Give the folder in which the parquet files of a path are, and their paths; None for none."""
    if fs.isfile(path) and (is_parquet(path) or not fs.isdir(path)):  # HTTP has folders as both
        return path.rpartition("/")[0], {path}
    if fs.isdir(path):
        return path, _parquet_below(fs, path)
    signs = [path.index(sign) for sign in "*?[" if sign in path]
    if not signs:
        return None
    root = path[: min(signs)].rpartition("/")[0]
    matches = {
        str(name): is_folder(fs, name, info["type"])
        for name, info in fs.glob(path, detail=True).items()
        if is_hidden(path.removeprefix(root)) or not is_hidden(str(name).removeprefix(root))
    }
    files = {name for name, is_inner in matches.items() if not is_inner and is_parquet(name)}
    # Spark's folders end as its files do. Others are meant where no file is.
    inner = [name for name, is_inner in matches.items() if is_inner]
    inner = [name for name in inner if is_parquet(name) or not files]
    return root, files.union(*(_parquet_below(fs, name) for name in inner))


def is_utf8(name: str) -> bool:
    """Say whether a file's name is text; Python has other bytes of it as lone surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def is_parquet(path: str) -> bool:
    """Say whether a name ends as that of a parquet file does."""
    return path.lower().endswith(".parquet")


def _parquet_below(fs: AbstractFileSystem, folder: str) -> set[str]:
    """Give the parquet files in a folder and in those below it."""
    return {path for path in files_below(fs, folder) if is_parquet(path)}


def is_folder(fs: AbstractFileSystem, path: str, kind: str) -> bool:
    """Say whether what was listed as of some kind is a folder, or a link to one."""
    return os.path.isdir(path) if is_local(fs) else kind == "directory"


def files_below(fs: AbstractFileSystem, path: str) -> list[str]:
    """List all files in a folder and in those below it, but for hidden ones; each file once.

    Links to folders are followed. Of several links to one file the first by name is taken, and none
    where the file itself is there.
    """
    if not is_local(fs):
        found = [str(name) for name in fs.find(path)]
        return [name for name in found if not is_hidden(name.removeprefix(path))]
    files, seen = list[str](), set[str]()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_raise_outage):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back, or to where another one has led
            folders.clear()
            continue
        seen.add(real)
        files += [os.path.join(folder, name) for name in names if not is_hidden(name)]
    return _each_once(files)


def is_hidden(path: str) -> bool:
    """Say whether a relative path has a part whose name begins with `.` or `_`."""
    return any(part.startswith(HIDDEN) for part in path.split("/"))


def _each_once(files: list[str]) -> list[str]:
    """Leave out links to files that are in the list, themselves or by another link."""
    links = {path for path in files if os.path.islink(path)}
    once = [path for path in files if path not in links]
    seen = {os.path.realpath(path) for path in once} if links else set()
    for path in sorted(links):
        target = os.path.realpath(path)
        if target not in seen:
            once.append(path)
            seen.add(target)
    return once


def _raise_outage(error: OSError) -> None:
    """Raise what keeps a folder from being listed, other than that it is somebody else's."""
    if not isinstance(error, PermissionError):
        raise error
