import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from evals import words
from evals.words import OTHER_WAY, is_test_word, load_words, parse_words
from nanoray.config import DataError, InputError
from tests.evals.local_hub import local_words
from tests.http_server import serving

FIRST_TEST_WORDS = ["ab", "abac", "abacli"]
"""Written down, because a model that was trained by one split must not be tested by another."""


@contextmanager
def server_of(status: int, body: bytes) -> Iterator[str]:
    """Answer every request with the same; gives an address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as address:
        yield f"{address}/words_alpha.txt"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep what is fetched in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_the_public_list_has_as_many_words_as_nanochat_draws_from() -> None:
    loaded = load_words(local_words())

    assert len(loaded) == len(set(loaded)) == 370_099


def test_one_word_in_ten_is_for_tests_and_the_golden_ones_are_not() -> None:
    loaded = load_words(local_words())

    share = sum(map(is_test_word, loaded)) / len(loaded)

    assert share == pytest.approx(0.1, abs=0.001)
    assert not any(map(is_test_word, ["strawberry", "banana", "cat"]))
    assert [word for word in loaded if is_test_word(word)][:3] == FIRST_TEST_WORDS


def test_words_are_stripped_and_empty_lines_left_out() -> None:
    assert parse_words(" cat\r\n\r\nbanana \n\n", "a list") == ["cat", "banana"]


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_list_without_words_is_refused(text: str) -> None:
    with pytest.raises(
        InputError, match=r"a list has no words\. Give --words FILE, with one lower"
    ):
        parse_words(text, "a list")


@pytest.mark.parametrize("line", ["don't", "Cat", "straße", "two words", "<html>"])
def test_a_line_that_is_no_word_is_named(line: str) -> None:
    with pytest.raises(InputError, match=f"a list: line 2 is [\"']{line}[\"'], and no word"):
        parse_words(f"cat\n{line}\n", "a list")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "words.txt"
    binary.write_bytes(b"\xff\xfe\x00")

    for path in (binary, tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=f"The words in {path} cannot be read"):
            load_words(str(path))


def test_the_public_list_is_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with server_of(200, b"cat\r\nbanana\r\n") as url:
        monkeypatch.setattr(words, "WORDS_URL", url)
        first = load_words()

    second = load_words()  # the server is gone

    assert first == second == ["cat", "banana"]
    assert len(list(cache.glob("nanoray/*words_alpha.txt"))) == 1


@pytest.mark.parametrize(
    ("status", "body", "reason"), [(404, b"", "404"), (200, b"<html>log in</html>", "plain text")]
)
def test_a_list_that_cannot_be_fetched_is_asked_of_the_user(
    cache: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, reason: str
) -> None:
    with server_of(status, body) as url:
        monkeypatch.setattr(words, "WORDS_URL", url)
        with pytest.raises(DataError, match=reason) as caught:
            load_words()

    assert str(caught.value).endswith(OTHER_WAY)


def test_the_embedded_texts_give_words_without_a_network(cache: Path) -> None:
    loaded = load_words("embedded")

    assert loaded == sorted(set(loaded))
    assert all(re.fullmatch("[a-z]{3,15}", word) for word in loaded)
    assert len(loaded) == 17_389
    assert sum(map(is_test_word, loaded)) / len(loaded) == pytest.approx(0.1, abs=0.01)
    assert not list(cache.iterdir())


def test_embedded_words_are_no_names_and_no_pieces_of_contractions() -> None:
    loaded = set(load_words("embedded"))

    assert {"letter", "marriage", "economy", "abandon"} <= loaded
    assert loaded.isdisjoint({"elizabeth", "albania", "don", "didn", "doesn"})


def test_nearly_all_embedded_words_are_of_the_public_list() -> None:
    public = set(load_words(local_words()))

    loaded = load_words("embedded")

    # The rest are foreign words and compounds that dictionaries write with a hyphen.
    assert sum(word in public for word in loaded) / len(loaded) > 0.97
