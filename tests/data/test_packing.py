import tracemalloc
from bisect import insort

import numpy as np
import pytest

from nanoray.data.packing import Tokens, pack

BOS = 0
LETTERS = {
    letter: np.array([BOS, *[ord(letter)] * count], np.int32)
    for letter, count in {"a": 5, "b": 9, "e": 5, "f": 9, "i": 5, "j": 9}.items()
}
"""Documents of nanochat.md 12.1: five or nine times the same letter."""


def documents_of(lengths: list[int]) -> list[Tokens]:
    """Make documents of these lengths, <|bos|> included; no other token comes twice.

    Within a document tokens count up by one, and there is a gap before the next one's.
    """
    firsts = np.cumsum([1, *lengths])
    return [
        np.concatenate([[BOS], np.arange(first, first + length - 1)]).astype(np.int32)
        for first, length in zip(firsts[:-1], lengths, strict=True)
    ]


def random_lengths(seed: int) -> list[int]:
    """Draw lengths as texts have them: most short, some longer than several rows."""
    draw = np.random.default_rng(seed)
    count = int(draw.integers(1, 200))
    return (2 + draw.lognormal(2.5, 1.3, count)).astype(int).tolist()


def pieces_of(row: Tokens) -> list[Tokens]:
    """Cut a row before each <|bos|>."""
    starts = np.flatnonzero(row == BOS)
    return np.split(row, starts)[1:]


def text(row: Tokens) -> str:
    return "".join("^" if token == BOS else chr(token) for token in row)


def naive_bestfit(documents: list[Tokens], row_len: int) -> list[list[int]]:
    """Fill rows token list by token list, looking at every piece each time; rows in no order."""
    rows = []
    pool: list[tuple[int, int, list[int]]] = []
    for number, document in enumerate(documents):
        rest = document.tolist()
        while len(rest) >= row_len:
            rows.append(rest[:row_len])
            rest = [BOS, *rest[row_len:]] if rest[row_len:] else []
        if rest:
            insort(pool, (len(rest), number, rest))
    row: list[int] = []
    while pool:
        space = row_len - len(row)
        fitting = [entry for entry in pool if entry[0] <= space]
        taken = max(fitting or pool)
        pool.remove(taken)
        _, number, piece = taken
        row += piece[:space]
        if len(piece) > space:
            rest = [BOS, *piece[space:]] if space > 1 else piece
            insort(pool, (len(rest), number, rest))
        if len(row) == row_len:
            rows.append(row)
            row = []
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_bestfit_loses_and_repeats_no_token_but_those_of_the_last_unfilled_row(seed):
    documents = documents_of(random_lengths(seed))
    row_len = 33

    rows, dropped = pack(documents, row_len, BOS, "bestfit")

    assert rows.shape[1] == row_len
    assert rows.dtype == np.int32
    packed = rows[rows != BOS]
    given = np.concatenate(documents)
    lost = np.setdiff1d(given[given != BOS], packed)
    assert len(np.unique(packed)) == len(packed), "a token came twice"
    assert len(packed) + len(lost) == (given != BOS).sum()
    assert len(lost) <= dropped < row_len


@pytest.mark.parametrize("seed", range(20))
def test_bestfit_rows_begin_with_bos_and_hold_runs_of_one_document(seed):
    documents = documents_of(random_lengths(seed))

    rows, _ = pack(documents, 33, BOS, "bestfit")

    assert (rows[:, 0] == BOS).all()
    for piece in (piece for row in rows for piece in pieces_of(row)):
        assert (np.diff(piece[1:]) == 1).all()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("row_len", [2, 3, 9, 33])
def test_bestfit_is_that_of_the_naive_packer(seed, row_len):
    documents = documents_of(random_lengths(seed))

    rows, _ = pack(documents, row_len, BOS, "bestfit")

    assert sorted(rows.tolist()) == sorted(naive_bestfit(documents, row_len))


def test_a_document_longer_than_rows_is_cut_into_pieces_that_go_on_after_bos():
    [document] = documents_of([24])

    rows, dropped = pack([document], 8, BOS, "bestfit")

    # 23 tokens behind one bos: 7 in each row, and 2 of 23 are left for the unfilled one.
    pieces = sorted(rows.tolist(), key=lambda row: row[1])
    assert pieces == [[BOS, *range(1 + 7 * i, 8 + 7 * i)] for i in range(3)]
    assert dropped == 1 + 2


def test_a_long_document_takes_no_more_memory_than_it_has_tokens():
    [document] = documents_of([200_000])
    tracemalloc.start()

    rows, _ = pack([document], 65, BOS, "bestfit")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The rows, their copy in the shuffled order, and the pieces that they are made of.
    assert peak < 4 * rows.nbytes


def test_a_document_of_exactly_one_row_is_not_cut():
    [document] = documents_of([8])

    rows, dropped = pack([document], 8, BOS, "bestfit")

    assert rows.tolist() == [document.tolist()]
    assert dropped == 0


def test_the_longest_document_that_fits_comes_first_and_the_next_is_cut():
    # nanochat.md P2.17: nothing fits behind the ten tokens of b, so a is cut to three.
    rows, dropped = pack([LETTERS["a"], LETTERS["b"]], 13, BOS, "bestfit")

    assert [text(row) for row in rows] == ["^bbbbbbbbb^aa"]
    assert dropped == len("^aaa")


def test_a_single_place_left_is_filled_by_bos_and_the_document_stays_whole():
    documents = documents_of([7, 8, 8])

    rows, dropped = pack(documents, 8, BOS, "bestfit")

    seven, *eights = [document.tolist() for document in documents]
    assert sorted(rows.tolist()) == sorted(eights)
    assert dropped == len(seven)


def test_bestfit_drops_less_than_a_hundredth_of_a_unit():
    # A unit of about 100 kB of text at T=256; the share falls with the size of the unit.
    lengths = (20 + np.random.default_rng(0).lognormal(5, 1, 120)).astype(int).tolist()
    documents = documents_of(lengths)
    assert 20_000 < sum(map(len, documents)) < 60_000

    _, dropped = pack(documents, 257, BOS, "bestfit")

    assert dropped < 0.01 * sum(map(len, documents))


def test_bestfit_is_the_same_each_time():
    documents = documents_of(random_lengths(1))

    first, second = (pack(documents, 33, BOS, "bestfit")[0] for _ in range(2))

    assert np.array_equal(first, second)


def test_bestfit_rows_do_not_come_in_the_order_of_their_lengths():
    documents = documents_of(list(range(2, 34)) * 10)

    rows, _ = pack(documents, 33, BOS, "bestfit")

    # As they are packed, each row begins with the longest document that was left.
    first_lengths = np.array([len(pieces_of(row)[0]) for row in rows])
    correlation = np.corrcoef(first_lengths, np.arange(len(rows)))[0, 1]
    assert len(rows) > 100
    assert abs(correlation) < 0.3


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("row_len", [2, 3, 33])
def test_flat_targets_cover_the_stream_exactly_once_but_for_its_tail(seed, row_len):
    documents = documents_of(random_lengths(seed))

    rows, dropped = pack(documents, row_len, BOS, "flat")

    stream = np.concatenate(documents)
    covered = len(rows) * (row_len - 1)
    assert np.array_equal(rows[:, :-1].ravel(), stream[:covered])
    assert np.array_equal(rows[:, 1:].ravel(), stream[1 : covered + 1])
    assert len(stream) == covered + 1 + dropped
    assert dropped < row_len - 1
    assert rows.dtype == np.int32


def test_flat_rows_overlap_by_one_token():
    documents = documents_of([50, 60, 70])

    rows, _ = pack(documents, 17, BOS, "flat")

    assert np.array_equal(rows[1:, 0], rows[:-1, -1])


def test_flat_is_nanochats_stream():
    # nanochat.md 12.1, rank 0, batch 0, as if all its documents were of one unit.
    documents = [LETTERS[letter] for letter in "abefij"]

    rows, _ = pack(documents, 11, BOS, "flat")

    assert [text(row[:-1]) for row in rows[:2]] == ["^aaaaa^bbb", "bbbbbb^eee"]
    assert [text(row[1:]) for row in rows[:2]] == ["aaaaa^bbbb", "bbbbb^eeee"]


@pytest.mark.parametrize("packing", ["bestfit", "flat"])
@pytest.mark.parametrize("lengths", [[], [1], [1, 1, 1], [7]])
def test_too_few_tokens_give_no_row_and_are_counted_as_dropped(packing, lengths):
    rows, dropped = pack(documents_of(lengths), 8, BOS, packing)

    assert rows.shape == (0, 8)
    assert rows.dtype == np.int32
    assert dropped == sum(lengths)


def test_documents_of_a_single_token_fill_rows():
    rows, dropped = pack(documents_of([1] * 10), 4, BOS, "bestfit")

    assert rows.tolist() == [[BOS] * 4] * 2
    assert dropped == 2


def test_rows_of_two_hold_one_token_each():
    rows, dropped = pack(documents_of([4, 1, 2]), 2, BOS, "bestfit")

    assert sorted(rows.tolist()) == [[BOS, token] for token in (1, 2, 3, 6)]
    assert dropped == 1
