"""Text that grows by tokens: whole characters, and stop strings cut at every place."""

import random

import pytest

from nanoray.inference.text_stream import TextStream, overlap


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> list[str]:
    """Give the texts that come of each piece, and of the end."""
    text = TextStream(stop)
    return [text.add(piece) for piece in pieces] + [text.finish()]


def cut(content: bytes, rng: random.Random) -> list[bytes]:
    """Cut bytes into pieces of one to four."""
    pieces = []
    while content:
        size = rng.randrange(1, 5)
        pieces.append(content[:size])
        content = content[size:]
    return pieces


def test_a_character_comes_when_its_last_byte_does() -> None:
    texts = stream([bytes([byte]) for byte in "aé漢🙂".encode()])

    assert texts == ["a", "", "é", "", "", "漢", "", "", "", "🙂", ""]


@pytest.mark.parametrize(
    "content",
    [
        "Grüße, 漢字 and 🙂👩‍👩‍👧!".encode(),
        b"\xff\xfe bad \xf0\x9f bytes \xe6\xbc",
        bytes(range(256)),
    ],
)
def test_however_bytes_are_cut_the_text_is_that_of_all_of_them(content: bytes) -> None:
    for seed in range(50):
        texts = stream(cut(content, random.Random(seed)))

        assert "".join(texts) == content.decode(errors="replace")


def test_a_stop_string_ends_the_text_wherever_tokens_cut_it() -> None:
    content = b"one two STOP three"
    for seed in range(50):
        texts = stream(cut(content, random.Random(seed)), ("STOP",))

        assert "".join(texts) == "one two "


def test_what_may_begin_a_stop_string_is_held_until_it_does_not() -> None:
    texts = stream([b"a", b"\n", b"\n", b"b", b"\n"], ("\n\nUser",))

    assert texts == ["a", "", "", "\n\nb", "", "\n"]


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert "".join(stream([b"x then yy"], ("yy", "then"))) == "x "
    assert "".join(stream([b"aab"], ("ab", "aab"))) == ""


def test_nothing_comes_after_a_stop_string() -> None:
    text = TextStream(("b",))

    given = [text.add(b"ab"), text.add(b"cd"), text.finish()]

    assert given == ["a", "", ""]
    assert text.stopped


def test_a_stop_string_that_an_unfinished_character_completes_is_found() -> None:
    text = TextStream(("\N{REPLACEMENT CHARACTER}",))

    given = [text.add(b"a\xe6"), text.finish()]

    assert given == ["a", ""]
    assert text.stopped


def test_an_empty_stop_string_stops_nothing() -> None:
    assert "".join(stream([b"abc"], ("",))) == "abc"


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("ab", "bc", 1), ("abc", "abc", 0), ("aaa", "aaab", 3), ("", "a", 0), ("xab", "abab", 2)],
)
def test_the_longest_beginning_is_held(text: str, stop: str, length: int) -> None:
    assert overlap(text, stop) == length
