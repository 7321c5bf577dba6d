import itertools
import random
from collections import Counter
from collections.abc import Mapping

import pytest
import regex
import rustbpe

from nanoray.text.bpe import Pair, learn_merges
from nanoray.text.tokenizer import SPLIT_PATTERN, Tokenizer
from tests.support import embedded_text


def naive_merges(word_counts: Mapping[bytes, int], num_merges: int) -> list[Pair]:
    """Learn merges by counting everything anew for each one (rule: nanochat.md 4.1)."""
    words = [(list(word), count) for word, count in word_counts.items()]
    merges: list[Pair] = []
    while len(merges) < num_merges:
        counts: Counter[Pair] = Counter()
        for ids, count in words:
            for pair in itertools.pairwise(ids):
                counts[pair] += count
        counts = +counts
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        words = [(replace(ids, best, 256 + len(merges)), count) for ids, count in words]
        merges.append(best)
    return merges


def replace(ids: list[int], pair: Pair, new: int) -> list[int]:
    """Put `new` for the pair, from left to right."""
    replaced: list[int] = []
    index = 0
    while index < len(ids):
        if tuple(ids[index : index + 2]) == pair:
            replaced.append(new)
            index += 2
        else:
            replaced.append(ids[index])
            index += 1
    return replaced


def random_words(seed: int) -> dict[bytes, int]:
    """Draw words over few letters, which are full of runs, overlaps and ties."""
    source = random.Random(seed)
    letters = (b"a", b"ab", b"abc", bytes(range(256)))[seed % 4]
    return {
        bytes(source.choices(letters, k=source.randint(1, 20))): source.randint(1, 4)
        for _ in range(source.randint(1, 30))
    }


@pytest.mark.parametrize("seed", range(200))
def test_merges_equal_those_of_counting_anew_each_time(seed: int) -> None:
    words = random_words(seed)

    merges = learn_merges(words, 60)

    assert merges == naive_merges(words, 60)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({b"aaaa": 1}, [(97, 97), (256, 256)]),  # aaaa -> AA -> one token
        ({b"aaaaa": 1}, [(97, 97), (256, 97), (256, 257)]),  # A A a: ties to the smaller left id
        ({b"abab": 1}, [(97, 98), (256, 256)]),
        ({b"ababa": 1}, [(97, 98), (256, 97), (256, 257)]),
        ({b"ba": 1, b"ab": 1}, [(97, 98), (98, 97)]),
        ({b"zz": 1, b"aa": 1, b"az": 1}, [(97, 97), (97, 122), (122, 122)]),
        ({b"ab": 2, b"bc": 3}, [(98, 99), (97, 98)]),
    ],
)
def test_runs_overlaps_and_ties_follow_the_rule(
    words: dict[bytes, int], expected: list[Pair]
) -> None:
    merges = learn_merges(words, 10)

    assert merges == expected == naive_merges(words, 10)


def test_merges_of_real_text_equal_those_of_counting_anew_each_time() -> None:
    pieces = regex.findall(SPLIT_PATTERN, embedded_text(12_000))
    words = Counter(piece.encode() for piece in pieces)

    merges = learn_merges(words, 300)

    assert len(merges) == 300
    assert merges == naive_merges(words, 300)


def test_order_of_the_counts_does_not_matter() -> None:
    words = random_words(2) | random_words(3)
    shuffled = list(words.items())
    random.Random(0).shuffle(shuffled)

    merges = learn_merges(dict(shuffled), 60)

    assert merges == learn_merges(words, 60)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_merging_stops_when_every_word_is_one_token(seed: int) -> None:
    words = random_words(seed + 1)

    merges = learn_merges(words, 10_000)

    tokenizer = Tokenizer(merges, pattern=r"\S+")
    assert len(merges) < 10_000
    assert [len(tokenizer.encode(word.decode())) for word in words] == [1] * len(words)


@pytest.mark.parametrize("words", [{}, {b"": 5}, {b"a": 5, b"b": 7}, {b"ab": 0}])
def test_words_without_a_pair_give_no_merge(words: dict[bytes, int]) -> None:
    merges = learn_merges(words, 10)

    assert merges == []


def test_counts_beyond_32_bits_are_exact() -> None:
    words = {b"ab": 2**40 + 1, b"bc": 2**40, b"cd": 2**40 + 2}

    merges = learn_merges(words, 3)

    assert merges == [(99, 100), (97, 98), (98, 99)]


def test_merges_equal_those_of_the_library_of_nanochat() -> None:
    text = embedded_text(300_000)
    theirs = rustbpe.Tokenizer()
    theirs.train_from_iterator([text], 256 + 1500, pattern=SPLIT_PATTERN)
    counts = Counter(piece.encode() for piece in regex.findall(SPLIT_PATTERN, text))

    merges = learn_merges(counts, 1500)

    token_bytes = [bytes([value]) for value in range(256)]
    for left, right in merges:
        token_bytes.append(token_bytes[left] + token_bytes[right])
    expected = {bytes(token): rank for token, rank in theirs.get_mergeable_ranks()}
    assert {token: rank for rank, token in enumerate(token_bytes)} == expected
