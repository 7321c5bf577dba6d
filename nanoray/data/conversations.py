"""Conversations in, rows out: packed whole, and padded where the next one does not fit.

A row holds several conversations, each from its <|bos|> on, and what follows the last is padding.
Tokens that are not to be learned stand in the row as `~id`: the mask travels with the tokens, and
the ledger's hash of a row is over both.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from nanoray.data.packing import PackedUnit, Tokens
from nanoray.text.chat import render
from nanoray.text.tokenizer import Tokenizer

CHAT_PACKINGS = {"chat-assistant": "assistant", "chat-all": "all"}
"""Packings of a data plan over conversations, and whose tokens are learned with each."""

CUT = "cut conversations"
UNLEARNABLE = "conversations without a token to learn"
PADDING = "padding tokens"
LEARNED = "tokens to learn"
CONVERSATIONS = "conversations"


def pack_conversations(
    documents: Iterable[str], tokenizer: Tokenizer, *, row_len: int, learn: str
) -> PackedUnit:
    """Pack the conversations of one unit.

    One that is longer than a row is cut at its end. One in which nothing is left to learn is left
    out: it would make a row without a loss. Both are counted.

    Args:
        documents: JSON lists of messages.
        tokenizer: gives the ids.
        row_len: T+1, so that inputs and targets are the row without its last and first token.
        learn: `assistant` for what the assistant writes, `all` for every token but <|bos|>.
    """
    counts = Counter(dict.fromkeys((CONVERSATIONS, CUT, UNLEARNABLE, LEARNED), 0))
    pieces = []
    for document in documents:
        ids, mask = render(json.loads(document), tokenizer, max_tokens=row_len + 1)
        counts[CONVERSATIONS] += 1
        counts[CUT] += len(ids) > row_len
        tokens = np.array(ids[:row_len], np.int32)
        learned = np.array(mask[:row_len], bool)
        if learn == "all":
            learned = np.arange(len(tokens)) > 0
        if not learned.any():
            counts[UNLEARNABLE] += 1
            continue
        counts[LEARNED] += int(learned.sum())
        pieces.append(np.where(learned, tokens, ~tokens))
    rows = pack_whole(pieces, row_len, ~np.int32(tokenizer.bos_id))
    num_tokens = sum(map(len, pieces))
    counts[PADDING] = rows.size - num_tokens
    return PackedUnit(rows, num_tokens, num_dropped=0, counts=dict(counts))


def pack_whole(pieces: Sequence[Tokens], row_len: int, padding: np.int32) -> Tokens:
    """Fill each row with the longest piece that fits its rest, and pad where none does.

    Rows come in a fixed shuffled order: packing takes long pieces first, and training should not.
    """
    pool = sorted((len(piece), index) for index, piece in enumerate(pieces))
    rows = np.full((0, row_len), padding, np.int32)
    packed = []
    while pool:
        row, filled = np.full(row_len, padding, np.int32), 0
        while (fitting := bisect_right(pool, (row_len - filled, len(pieces))) - 1) >= 0:
            length, index = pool.pop(fitting)
            row[filled : filled + length] = pieces[index]
            filled += length
        packed.append(row)
    if packed:
        rows = np.stack(packed)
    return rows[np.random.Generator(np.random.PCG64(len(rows))).permutation(len(rows))]
