"""The file of a tokenizer: JSON, on any storage."""

from nanoray.config import InputError
from nanoray.storage import open_location, read_json, write_json
from nanoray.text.tokenizer import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, address: str) -> None:
    """Write a tokenizer as JSON."""
    fs, path = open_location(address)
    write_json(fs, path, tokenizer.to_json())


def load_tokenizer(address: str) -> Tokenizer:
    """Read a tokenizer.

    Raises:
        InputError: no such file, or no whole tokenizer in it.
    """
    fs, path = open_location(address)
    if fs.isdir(path):
        raise InputError(f"the tokenizer {address} is a folder. Name the file in it.")
    try:
        saved = read_json(fs, path)
    except NotADirectoryError:
        saved = None
    if saved is None:
        raise InputError(
            f"the tokenizer {address} does not exist. Train one with jobs/tokenizer.py."
        )
    return Tokenizer.from_json(saved, address)
