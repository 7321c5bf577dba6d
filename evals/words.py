"""English words for the spelling tasks, and which of them are for training and which for tests."""

import re
import zlib
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from nanoray.config import InputError
from nanoray.data.cached_file import PLAIN_TEXT, fetch_once
from nanoray.data.datasets import EMBEDDED, EMBEDDED_WORDS

WORDS_URL = "https://raw.githubusercontent.com/dwyl/english-words/master/words_alpha.txt"
"""370,000 words, one a line; in the public domain."""

TEST_SALT = "nanoray"
TEST_ONE_IN = 10

WORD = re.compile("[a-z]+")

WORD_IN_TEXT = re.compile(r"(?<![\w'\u2019])[a-z]{3,15}(?![\w'\u2019])")
"""In lower case, so that names are left out, and no piece of a contraction such as don't."""
LEAST_OCCURRENCES = 3
"""What stands in the embedded texts less often is as often a slip as a word."""

OTHER_WAY = (
    "Give --words FILE, with one lower-case word a line, or --words embedded, for the words of "
    "the texts that come with nanoray."
)


def load_words(path: str | None = None) -> list[str]:
    """Read a list of words, in its order; without a path, the public one, which is fetched once.

    The path "embedded" stands for `embedded_words`, which needs no network.

    Raises:
        InputError: the file cannot be read, or is no list of words.
        DataError: the public list cannot be fetched.
    """
    if path == EMBEDDED_WORDS:
        return embedded_words()
    file = fetch_once(WORDS_URL, PLAIN_TEXT, OTHER_WAY) if path is None else path
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The words in {file} cannot be read ({error}). {OTHER_WAY}") from error
    return parse_words(text, file)


def embedded_words() -> list[str]:
    """Gather the words of the texts that come with nanoray, sorted."""
    counts = Counter[str]()
    for text in embedded_texts():
        counts.update(WORD_IN_TEXT.findall(text))
    return sorted(word for word, count in counts.items() if count >= LEAST_OCCURRENCES)


def embedded_texts() -> list[str]:
    """Read the documents that come with nanoray, in the order of their shards."""
    files = sorted(Path(EMBEDDED).glob("*.parquet"))
    return [str(text) for file in files for text in pq.read_table(file)["text"].to_pylist()]


def parse_words(text: str, source: str) -> list[str]:
    """Take the words out of a text with one a line; empty lines are left out.

    Raises:
        InputError: a line that is no word, or no word at all. Other letters and signs are refused
            because a word stands in quotes in the expression that counts its letters.
    """
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and not WORD.fullmatch(line):
            raise InputError(
                f"{source}: line {number} is {line[:40]!r}, and no word of the letters a to z. "
                f"{OTHER_WAY}"
            )
    words = [line for line in lines if line]
    if not words:
        raise InputError(f"{source} has no words. {OTHER_WAY}")
    return words


def is_test_word(word: str) -> bool:
    """Say whether a word, one in ten, is kept out of training: the same ones everywhere."""
    return zlib.crc32(f"{TEST_SALT}{word}".encode()) % TEST_ONE_IN == 0
