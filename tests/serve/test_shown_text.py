"""Texts as Markdown that shows them, and back."""

import random
import time

import pytest
from markdown_it import MarkdownIt

from nanoray.serve.shown_text import (
    pieces,
    show_as_code,
    show_html_as_text,
    text_of_code,
    text_of_shown,
)

SHOWN = [
    ("a <img src=x> b", "a &lt;img src=x> b"),
    ("a </b> <!-- <?x", "a &lt;/b> &lt;!-- &lt;?x"),
    ("1 < 2, a<3, A & B, a && b;", "1 < 2, a<3, A & B, a && b;"),
    ("&lt; &amp; &#60; &copy", "&amp;lt; &amp;amp; &amp;#60; &copy"),
    ("`a<b` and c<d", "`a<b` and c&lt;d"),
    ("``a`<b`` c<d", "``a`<b`` c&lt;d"),
    ("one ` alone <b>", "one ` alone &lt;b>"),
    (r"\`<b>`", r"\`&lt;b>`"),
    ("a `b\n\nc` <d>", "a `b\n\nc` &lt;d>"),
    ("- a `b <i>\n- c` <d>", "- a `b &lt;i>\n- c` &lt;d>"),
    ("```\na<b\n```\nc<d", "```\na<b\n```\nc&lt;d"),
    ("~~~\na<b\n```\nc<d\n~~~\ne<f", "~~~\na<b\n```\nc<d\n~~~\ne&lt;f"),
    ("```\nunfinished <b", "```\nunfinished <b"),
    ("in a line ``` <b>\n\nx <b>", "in a line ``` &lt;b>\n\nx &lt;b>"),
    ("- a\n\n    ```html\n    <p>\n    ```\n<b>", "- a\n\n    ```html\n    <p>\n    ```\n&lt;b>"),
    ("- ```\n  <p>\n<b>", "- ```\n  <p>\n&lt;b>"),
    ("x:\n\n    <p>\n\n    <q>\n<b>", "x:\n\n    <p>\n\n    <q>\n&lt;b>"),
    ("x:\n    <p>", "x:\n    &lt;p>"),
    ("- x\n\n    <p>", "- x\n\n    &lt;p>"),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_tags_and_names_are_shown_as_text_and_code_as_it_stands(text: str, shown: str) -> None:
    assert show_html_as_text(text) == shown
    assert text_of_shown(shown) == text


def test_any_text_comes_back_exactly() -> None:
    draw = random.Random(0)
    parts = ["`", "```", "~~~", "\\", "<", "<b>", "&", "&lt;", "&amp;", "amp;", "lt;", "#60;", "-"]
    parts += ["\n", "\n\n", "    ", "\t", " ", "x", "1. ", "# ", "é", "\r", "\u2028"]
    for _ in range(20_000):
        text = "".join(draw.choices(parts, k=draw.randrange(12)))

        assert text_of_shown(show_html_as_text(text)) == text
        assert "".join(piece for piece, _ in pieces(text)) == text
        assert text_of_code(show_as_code(text)) == text


def test_code_with_empty_lines_stays_one_span() -> None:
    text = "a\n\n<img src=/x>\r\r# <h1>Server</h1>\n- b"

    [paragraph] = MarkdownIt().parse(show_as_code(text))[1:-1]

    assert [child.type for child in paragraph.children or []] == ["code_inline"]


def test_code_with_backticks_is_framed_by_more_of_them() -> None:
    assert show_as_code("'`'.count('``')") == "``` '`'.count('``') ```"


def test_a_long_text_of_backticks_takes_no_longer_than_another() -> None:
    text = "".join("`" * length + " " for length in range(1_000))  # half a million characters

    began = time.process_time()
    show_html_as_text(text)

    assert time.process_time() - began < 1
