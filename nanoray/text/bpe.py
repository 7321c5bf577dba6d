"""Byte-pair merges from word counts: exact greedy BPE, the whole corpus as NumPy arrays.

The published libraries train from text only, and the text is counted elsewhere here (on the
cluster), so the merges are made by this module: the distinct words lie one after another in a flat
array of token ids with links to the left and right neighbour, and one merge touches just the
places where its pair stands, all at once.
"""

import heapq
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Pair = tuple[int, int]
Places = npt.NDArray[np.int64]

NO_PLACE = -1


class MergeTable:
    """All words as one array of tokens, with the count and the places of each pair."""

    def __init__(self, word_counts: Mapping[bytes, int]) -> None:
        # Sorted, so that nothing depends on the order in which the counts arrived.
        words = sorted(word for word, count in word_counts.items() if len(word) > 1 and count > 0)
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        ends = np.cumsum(lengths)
        size = int(ends[-1]) if words else 0
        self.tokens = np.frombuffer(b"".join(words), dtype=np.uint8).astype(np.int32)
        self.weights = np.repeat(np.array([word_counts[w] for w in words], dtype=np.int64), lengths)
        self.right = np.arange(1, size + 1, dtype=np.int64)
        self.right[ends - 1] = NO_PLACE
        self.left = np.arange(-1, size - 1, dtype=np.int64)
        self.left[ends - lengths] = NO_PLACE
        self.counts: dict[Pair, int] = {}
        self.places: dict[Pair, Places] = {}
        self.heap: list[tuple[int, Pair]] = []
        lefts = np.flatnonzero(self.right != NO_PLACE)
        self._add_pairs(lefts)
        heapq.heapify(self.heap)

    def _add_pairs(self, lefts: Places) -> None:
        """Count and index new pairs, whose left halves are at `lefts`, ascending."""
        if not lefts.size:
            return
        first, second = self.tokens[lefts], self.tokens[self.right[lefts]]
        key = first.astype(np.int64) << 32 | second
        order = np.argsort(key, kind="stable")  # stable: places of one pair stay ascending
        key, lefts = key[order], lefts[order]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        totals = np.add.reduceat(self.weights[lefts], starts)
        for pair_key, total, places in zip(
            key[starts].tolist(), totals.tolist(), np.split(lefts, starts[1:]), strict=True
        ):
            pair = (pair_key >> 32, pair_key & 0xFFFFFFFF)
            self.counts[pair] = total
            self.places[pair] = places
            self.heap.append((-total, pair))

    def _subtract_pairs(self, lefts: Places) -> None:
        """Take the pairs whose left halves are at `lefts` out of the counts."""
        if not lefts.size:
            return
        key = self.tokens[lefts].astype(np.int64) << 32 | self.tokens[self.right[lefts]]
        order = np.argsort(key, kind="stable")
        key = key[order]
        starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        totals = np.add.reduceat(self.weights[lefts[order]], starts)
        for pair_key, total in zip(key[starts].tolist(), totals.tolist(), strict=True):
            self.counts[pair_key >> 32, pair_key & 0xFFFFFFFF] -= total

    def most_frequent(self) -> Pair | None:
        """Pop the pair of the highest count, of equals the smallest ids; None at the end."""
        while self.heap:
            negative, pair = heapq.heappop(self.heap)
            count = self.counts.get(pair, 0)
            if count == -negative and count > 0:
                return pair
            if count > 0:  # counts only fall after a pair was pushed: put it back where it belongs
                heapq.heappush(self.heap, (-count, pair))
        return None

    def merge(self, pair: Pair, new_token: int) -> None:
        """Replace the pair by `new_token` wherever it stands, from left to right in each word."""
        at = self._occurrences(pair)
        partner = self.right[at]
        before, after = self.left[at], self.right[partner]
        # The pairs that vanish: (x, a), (a, b) and (b, y). Neighbouring occurrences share a
        # pair, as in `abab`, which must be taken out once.
        vanishing = np.unique(
            np.concatenate([before[before != NO_PLACE], at, partner[after != NO_PLACE]])
        )
        self._subtract_pairs(vanishing)
        self.tokens[at] = new_token
        self.right[at] = after
        self.left[after[after != NO_PLACE]] = at[after != NO_PLACE]
        self.tokens[partner] = -1
        has_left, has_right = self.left[at] != NO_PLACE, self.right[at] != NO_PLACE
        fresh = len(self.heap)
        self._add_pairs(np.unique(np.concatenate([self.left[at[has_left]], at[has_right]])))
        created = self.heap[fresh:]
        del self.heap[fresh:]
        for entry in created:
            heapq.heappush(self.heap, entry)
        self.counts.pop(pair, None)
        self.places.pop(pair, None)

    def _occurrences(self, pair: Pair) -> Places:
        """Give the places where the pair still stands; in a run like `aaaa`, without overlap."""
        first, second = pair
        at = self.places[pair]
        at = at[self.tokens[at] == first]
        partner = self.right[at]
        at = at[(partner != NO_PLACE) & (self.tokens[partner] == second)]
        if first != second or at.size < 2:
            return at
        starts_run = np.r_[True, self.right[at[:-1]] != at[1:]]
        run = np.cumsum(starts_run) - 1
        offset = np.arange(at.size) - np.flatnonzero(starts_run)[run]
        return at[offset % 2 == 0]


def learn_merges(word_counts: Mapping[bytes, int], num_merges: int) -> list[Pair]:
    """Learn byte-pair merges: greedily the most frequent pair, ties to the smallest (left, right).

    Ids 0..255 are the bytes; merge i makes id 256 + i. The result depends on the counts alone.

    Args:
        word_counts: how often each piece of text, as the split pattern cuts it, occurs.
        num_merges: how many merges to learn; fewer come back when no pair is left.

    Returns:
        The merges in their order, as pairs of ids.
    """
    table = MergeTable(word_counts)
    token_bytes = [bytes([b]) for b in range(256)]
    known = set(token_bytes)
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pair = table.most_frequent()
        if pair is None:
            break
        text = token_bytes[pair[0]] + token_bytes[pair[1]]
        if text in known:  # tiktoken finds tokens by their bytes, so a second one could not be used
            table.counts.pop(pair)
            continue
        table.merge(pair, 256 + len(merges))
        merges.append(pair)
        token_bytes.append(text)
        known.add(text)
    return merges
