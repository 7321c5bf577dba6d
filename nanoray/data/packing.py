"""Documents in, rows out: every row has exactly T+1 tokens.

`bestfit` begins every row with <|bos|>. A document that does not fit hands its remainder to a later
row, because dropping it, as nanochat's best-fit packer does, throws away about a third of the
tokens at T=2048. `flat` is d34's way: one stream, with <|bos|> at the starts of documents only.
"""

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

PACKING_VERSION = 1
"""Part of every data hash: rows are a pure function of the unit, the tokenizer and this."""

PACKINGS = ("bestfit", "flat")
"""Of raw text; those of conversations are in `data.conversations`."""


@dataclass(frozen=True)
class PackedUnit:
    """The rows of one unit, and what packing had to leave out."""

    rows: Tokens
    """(num_rows, T+1) int32; a token that is not to be learned stands there as `~id`."""
    num_tokens: int
    """Tokens of the unit's documents, <|bos|> included."""
    num_dropped: int
    """Tokens of the unit's unfilled last row."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What else is worth counting."""


def pack(
    documents: Sequence[Tokens], row_len: int, bos_id: int, packing: str
) -> tuple[Tokens, int]:
    """Pack the documents of one unit.

    Args:
        documents: token ids, each beginning with `bos_id`.
        row_len: T+1, so that inputs and targets are the row without its last and first token.
        bos_id: what every bestfit row begins with.
        packing: `bestfit` or `flat`.

    Returns:
        Rows, (num_rows, row_len), and the number of tokens that were dropped with the unit's
        unfilled last row.
    """
    if packing == "flat":
        return pack_flat(documents, row_len)
    return pack_bestfit(documents, row_len, bos_id)


def pack_flat(documents: Sequence[Tokens], row_len: int) -> tuple[Tokens, int]:
    """Cut one long stream into rows; each row begins with the last token of the row before."""
    stream = np.concatenate([*documents, np.empty(0, np.int32)])
    T = row_len - 1
    num_rows = max(0, len(stream) - 1) // T
    if not num_rows:
        return np.empty((0, row_len), np.int32), len(stream)
    rows = np.lib.stride_tricks.sliding_window_view(stream, row_len)[: num_rows * T : T]
    return np.ascontiguousarray(rows, dtype=np.int32), len(stream) - num_rows * T - 1


def pack_bestfit(documents: Sequence[Tokens], row_len: int, bos_id: int) -> tuple[Tokens, int]:
    """Fill each row with the longest piece that fits its rest, and cut the longest where none fits.

    A document longer than a row fills rows of its own first, so that it is cut as rarely as it can
    be. Rows come in a fixed shuffled order: packing takes long documents first, and training should
    not.
    """
    bos = np.array([bos_id], np.int32)
    rows: list[Tokens] = []
    pieces: list[Tokens] = []
    T = row_len - 1
    for document in documents:
        whole = (len(document) - 1) // T
        body, rest = document[1 : 1 + whole * T], document[1 + whole * T :]
        rows += [np.concatenate([bos, part]) for part in body.reshape(whole, T)]
        if len(rest) or not whole:
            pieces.append(np.concatenate([bos, rest]))

    # (length, index) sorted, so that the longest piece that fits is found by bisection.
    pool = sorted((len(piece), index) for index, piece in enumerate(pieces))
    row: list[Tokens] = []
    space = row_len
    while pool:
        fitting = bisect_right(pool, (space, len(pieces))) - 1
        length, index = pool.pop(fitting if fitting >= 0 else -1)
        piece = pieces[index]
        row.append(piece[:space])
        if length > space:
            pieces[index] = np.concatenate([bos, piece[max(space, 1) :]])
            insort(pool, (len(pieces[index]), index))
        space -= min(length, space)
        if not space:
            rows.append(np.concatenate(row))
            row, space = [], row_len
    dropped = row_len - space
    if not rows:
        return np.empty((0, row_len), np.int32), dropped
    packed = np.stack(rows)
    order = np.random.Generator(np.random.PCG64(len(packed))).permutation(len(packed))
    return packed[order], dropped
