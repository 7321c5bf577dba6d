import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import regex

from nanoray.config import InputError
from nanoray.text.bpe import learn_merges
from nanoray.text.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from tests.support import embedded_text, tiny_tokenizer

SPLITS = [
    (
        "Hello  world! I'M 12345 don't\n\n  x",
        "Hello| | world|!| I|'M| |12|34|5| don|'t|\n\n| | x",
    ),
    (" 3 apples", " |3| apples"),
    ("we'll've THEY'RE it's", "we|'ll|'ve| THEY|'RE| it|'s"),
    ("$100.50 (ok)...\n\nnext", "$|10|0|.|50| (|ok|)...\n\n|next"),
    ("naïve 日本語 Ωmega", "naïve| 日本語| Ωmega"),
    ("tail   ", "tail|   "),
    ("a\r\n b\t\tc", "a|\r\n| b|\t|\tc"),
]
"""Text, and its pieces: the first two are nanochat.md 4.1, the others follow from the pattern."""


def random_text(seed: int) -> str:
    """Draw text from everywhere in Unicode: letters, emoji, controls and lone surrogates."""
    source = random.Random(seed)
    ranges = (
        (0x00, 0x7F),
        (0x00, 0x1F),
        (0x20, 0x20),
        (0x80, 0x2FFF),
        (0x4E00, 0x9FFF),
        (0xD800, 0xDFFF),
        (0xE000, 0xFFFF),
        (0x1F300, 0x1FAFF),
        (0x10000, 0x10FFFF),
    )
    return "".join(chr(source.randint(*source.choice(ranges))) for _ in range(300))


def as_utf8(text: str) -> str:
    """Join pairs of surrogates, and put U+FFFD for those that are alone."""
    joined = re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda pair: chr(0x10000 + ((ord(pair[0][0]) - 0xD800) << 10) + ord(pair[0][1]) - 0xDC00),
        text,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


def pieces_as_tokens(pieces: list[str]) -> Tokenizer:
    """Make a tokenizer in which each of these pieces is one token."""
    return Tokenizer(learn_merges({piece.encode(): 1 for piece in pieces}, 10_000))


@pytest.mark.parametrize(("text", "pieces"), SPLITS)
def test_text_is_cut_into_the_pieces_of_the_pattern(text: str, pieces: str) -> None:
    expected = pieces.split("|")
    tokenizer = pieces_as_tokens(expected)

    encoded = [tokenizer.decode([token]) for token in tokenizer.encode(text)]

    assert regex.findall(SPLIT_PATTERN, text) == expected  # what merges are learned from
    assert encoded == expected  # what is encoded


def test_bytes_come_first_then_merges_then_special_tokens() -> None:
    tokenizer = Tokenizer([(104, 105), (256, 33)], pattern=r"\S+|\s+")

    ids = tokenizer.encode("hi! hi")

    assert ids == [257, 32, 256]
    assert list(tokenizer.special_ids.values()) == list(range(258, 267))
    assert tokenizer.vocab_size == 267


def test_a_vocabulary_of_65536_has_its_special_tokens_where_nanochat_has_them() -> None:
    pairs = [(left, right) for left in range(256) for right in range(256)]

    tokenizer = Tokenizer(pairs[:65_271])

    assert tokenizer.vocab_size == 65_536
    assert list(tokenizer.special_ids) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special_ids.values()) == list(range(65_527, 65_536))
    assert tokenizer.bos_id == 65_527
    assert tokenizer.special_ids["<|assistant_end|>"] == 65_531


@pytest.mark.parametrize("seed", range(30))
def test_any_text_comes_back_from_its_ids(seed: int) -> None:
    text = random_text(seed)
    tokenizer = tiny_tokenizer()

    ids = tokenizer.encode(text)

    assert tokenizer.decode(ids) == as_utf8(text)
    assert tokenizer.decode_bytes(ids) == as_utf8(text).encode()
    assert tokenizer.token_lengths[ids].sum() == len(as_utf8(text).encode())


def test_empty_text_has_no_ids() -> None:
    ids = tiny_tokenizer().encode_array("")

    assert ids.dtype == np.int32
    assert ids.shape == (0,)


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join(SPECIAL_TOKENS) + "<|endoftext|>"

    ids = tokenizer.encode(text)

    assert max(ids) < tokenizer.bos_id
    assert tokenizer.decode(ids) == text


def test_special_tokens_decode_to_their_names_and_to_no_bytes() -> None:
    tokenizer = tiny_tokenizer()
    ids = [tokenizer.bos_id, *tokenizer.encode("hi"), tokenizer.special_ids["<|user_end|>"]]

    text, content = tokenizer.decode(ids), tokenizer.decode_bytes(ids)

    assert text == "<|bos|>hi<|user_end|>"
    assert content == b"hi"


def test_bytes_that_are_no_utf8_become_one_replacement_character() -> None:
    tokenizer = tiny_tokenizer()

    text = tokenizer.decode([0x61, 0xC8, 0x62])

    assert text == "a\ufffdb"


def test_lengths_are_raw_bytes_and_special_tokens_have_none() -> None:
    tokenizer = tiny_tokenizer()

    lengths = tokenizer.token_lengths

    # nanochat counted a byte that is no UTF-8 alone as the three bytes of U+FFFD (nanochat.md 4.4).
    assert lengths[200] == 1
    assert lengths[:256].tolist() == [1] * 256
    assert lengths[tokenizer.bos_id :].tolist() == [0] * 9
    assert len(lengths) == tokenizer.vocab_size


@pytest.mark.parametrize(
    ("unit", "times"),
    [(" ", 1_000_000), ("\n", 1_000_000), ("a", 10_000_000), ("ab", 2_000_000), ("é", 1_000_000)],
)
def test_a_huge_document_without_structure_takes_seconds(unit: str, times: int) -> None:
    tokenizer = pieces_as_tokens([unit * 64])

    began = time.monotonic()
    ids = tokenizer.encode_array(unit * times)
    seconds = time.monotonic() - began

    # Measured: 1.1 s at most. In one piece the letters take 7 s, and the spaces exhaust the stack.
    assert seconds < 10
    assert tokenizer.token_lengths[ids].sum() == len(unit.encode()) * times


def test_a_long_document_is_encoded_like_its_pieces() -> None:
    tokenizer = tiny_tokenizer()
    text = embedded_text(250_000)

    ids = tokenizer.encode(text)

    pieces = [text[:100_000], text[100_000:200_000], text[200_000:]]
    assert ids == [token for piece in pieces for token in tokenizer.encode(piece)]
    assert tokenizer.decode(ids) == text


def test_a_tokenizer_comes_back_from_json() -> None:
    tokenizer = tiny_tokenizer()

    rebuilt = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())), "tokenizer.json")

    assert rebuilt.hash == tokenizer.hash
    assert rebuilt.merges == tokenizer.merges
    assert rebuilt.encode(embedded_text(5000)) == tokenizer.encode(embedded_text(5000))


def test_the_hash_follows_all_that_decides_an_encoding() -> None:
    base = Tokenizer([(104, 105), (256, 33)])
    others = [
        Tokenizer([(104, 105), (256, 33)]),
        Tokenizer([(104, 105)]),
        Tokenizer([(104, 105), (256, 34)]),
        Tokenizer([(104, 105), (256, 33)], pattern=r"\S+"),
    ]

    same = [other.hash == base.hash for other in others]

    assert same == [True, False, False, False]


def test_the_hash_stays_the_same_for_ever() -> None:
    tokenizer = Tokenizer([(104, 105), (256, 33)])

    digest = tokenizer.hash

    # Every checkpoint carries it: if this changes, no run made before can be resumed.
    assert digest == "fc413eae02b4c7fbbfff81e2f69c40721215a28883d0fb71cc9dd69676bef892"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda saved: saved["merges"].pop(), "does not have the hash"),
        (lambda saved: saved["merges"].reverse(), "only ids below"),
        (lambda saved: saved.update(pattern=r"\w+"), "does not have the hash"),
        (lambda saved: saved.pop("hash"), "does not have the hash"),
        (lambda saved: saved.pop("merges"), "is not a tokenizer"),
        (lambda saved: saved.update(merges=[[1, 2, 3]]), "is not a tokenizer"),
        (lambda saved: saved.update(merges="ab"), "is not a tokenizer"),
        (lambda saved: saved.update(merges=[[97, 98], [97, 98]]), "two tokens of the same bytes"),
        (lambda saved: saved.update(pattern="("), "is not a tokenizer"),
        (lambda saved: saved.update(special_tokens=["<|bos|>"]), "other special tokens"),
        (lambda saved: saved.update(format_version=2), "format 2"),
    ],
)
def test_a_file_that_was_changed_is_refused_by_its_name(
    damage: Callable[[dict[str, Any]], object], said: str
) -> None:
    saved = json.loads(json.dumps(tiny_tokenizer().to_json()))
    damage(saved)

    with pytest.raises(InputError) as caught:
        Tokenizer.from_json(saved, "runs/demo/tokenizer.json")

    assert "runs/demo/tokenizer.json" in str(caught.value)
    assert said in str(caught.value)


def test_damaged_merges_are_not_used() -> None:
    with pytest.raises(InputError, match="Merge 1 of the tokenizer joins"):
        Tokenizer([(97, 98), (97, 300)])
