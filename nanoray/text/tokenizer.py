"""Text to token ids and back: byte-level BPE, kept as JSON, encoded by tiktoken.

Ids 0..255 are the raw bytes, then one id per merge, then the special tokens. Text never encodes to
a special token, whatever it contains; only `render` (chat.py) places them.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
import tiktoken

from nanoray.config import FORMAT_VERSION, InputError

SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""GPT-4's pattern with groups of one or two digits (nanochat)."""

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

PIECE_CHARS = 100_000
"""Longer documents are encoded in pieces of this many characters. Measured with tiktoken 0.14: a
million spaces exceed its regex's stack, and ten million equal letters take 20 times as long."""


DOCUMENT_CHARS = 10_000
"""Of each document this much counts for a new tokenizer, so that no single one dominates it."""


def split_words(documents: Iterable[str], pattern: str = SPLIT_PATTERN) -> Iterator[str]:
    """Cut documents into the pieces within which tokens are merged, for `learn_merges` to count."""
    find = regex.compile(pattern).findall
    for text in documents:
        yield from find(text[:DOCUMENT_CHARS])


class Tokenizer:
    """A byte-level BPE vocabulary; two with the same `hash` encode every text alike."""

    def __init__(self, merges: Sequence[tuple[int, int]], pattern: str = SPLIT_PATTERN) -> None:
        self.merges = tuple((int(left), int(right)) for left, right in merges)
        self.pattern = pattern
        token_bytes = [bytes([value]) for value in range(256)]
        for index, (left, right) in enumerate(self.merges):
            if not (0 <= left < 256 + index and 0 <= right < 256 + index):
                raise InputError(
                    f"Merge {index} of the tokenizer joins ({left}, {right}), and only ids below "
                    f"{256 + index} exist there. The file is damaged: restore it."
                )
            token_bytes.append(token_bytes[left] + token_bytes[right])
        num_ordinary = len(token_bytes)
        self.special_ids = {name: num_ordinary + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = num_ordinary + len(SPECIAL_TOKENS)
        self.bos_id = self.special_ids["<|bos|>"]
        ranks = {text: rank for rank, text in enumerate(token_bytes)}
        if len(ranks) < num_ordinary:
            raise InputError("The tokenizer has two tokens of the same bytes. Train it anew.")
        self._token_bytes = token_bytes
        self._encoding = tiktoken.Encoding(
            name="nanoray", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.special_ids
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all that decides an encoding."""
        content = json.dumps([self.pattern, self.merges, SPECIAL_TOKENS], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode ordinary text; what looks like a special token is text too."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_array(self, text: str) -> npt.NDArray[np.int32]:
        """Encode ordinary text as int32, (num_tokens,)."""
        pieces = [
            self._encoding.encode_to_numpy(
                _encodable(text[i : i + PIECE_CHARS]), disallowed_special=()
            )
            for i in range(0, len(text), PIECE_CHARS)
        ]
        return np.concatenate(pieces).astype(np.int32) if pieces else np.empty(0, np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids, special tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        return self._encoding.decode(list(ids))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Decode ids to the exact bytes, special tokens left out."""
        return b"".join(self._token_bytes[i] for i in ids if i < len(self._token_bytes))

    def token_bytes(self, token: int) -> bytes:
        """Give the bytes of one id; those of a special token are its name."""
        if token < len(self._token_bytes):
            return self._token_bytes[token]
        return SPECIAL_TOKENS[token - len(self._token_bytes)].encode()

    @cached_property
    def token_lengths(self) -> npt.NDArray[np.int32]:
        """Raw bytes of each token, (V,); 0 for the special tokens."""
        lengths = [len(text) for text in self._token_bytes] + [0] * len(SPECIAL_TOKENS)
        return np.array(lengths, dtype=np.int32)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all that is needed to rebuild the tokenizer, with its hash."""
        return {
            "hash": self.hash,
            "vocab_size": self.vocab_size,
            "pattern": self.pattern,
            "special_tokens": list(SPECIAL_TOKENS),
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any], source: str) -> "Tokenizer":  # Any: JSON
        """Rebuild a tokenizer.

        Raises:
            InputError: a file of a later nanoray, or one whose content does not have its hash.
        """
        version = saved.get("format_version", FORMAT_VERSION)
        if version != FORMAT_VERSION or saved.get("special_tokens") != list(SPECIAL_TOKENS):
            raise InputError(
                f"{source} is a tokenizer of format {version} with other special tokens or rules. "
                "Use the nanoray that made it, or train a new one with jobs/tokenizer.py."
            )
        try:
            tokenizer = cls(saved["merges"], saved["pattern"])
        except (InputError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} is not a tokenizer ({error!r}). Restore it.") from error
        if tokenizer.hash != saved.get("hash"):
            raise InputError(
                f"{source} does not have the hash {saved.get('hash')} that stands in it. "
                "It was changed or damaged: restore it."
            )
        return tokenizer


def _encodable(text: str) -> str:
    """Replace lone surrogates, which are not text and which tiktoken refuses, by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
