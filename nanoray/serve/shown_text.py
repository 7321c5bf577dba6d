"""Texts as Markdown that shows them: tags are read, not obeyed, and the text comes back exactly.

A page keeps its conversation as what it shows, so what was said must come back from there as it
was. Code stands as it is, because Markdown would show the `&lt;` in it.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator

LINE = re.compile(r"[^\n]*\n|[^\n]+")
ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)", re.MULTILINE)
HEADING = re.compile(r" {0,3}#{1,6}[ \t]")
INDENTED = re.compile(r"(?: {4}| {0,3}\t)")
FENCE = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(?P<fence>`{3,}(?=[^`]*$)|~{3,})")
RUN = re.compile(r"(?P<escapes>\\*)(?P<ticks>`+)")

OBEYED = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?[A-Za-z0-9]+;)")
"""What begins a tag or the name of a character; all other `<` and `&` Markdown shows itself."""
SHOWN = re.compile(r"&lt;(?=[A-Za-z/!?])|&amp;(?=#?[A-Za-z0-9]+;)")
NAMES = {"<": "&lt;", "&": "&amp;"}
CHARACTERS = {name: character for character, name in NAMES.items()}


NO_SPACE = "\u200b"
LINE_END = re.compile(r"[\r\n]")
WITHOUT_SPACE = re.compile(rf"([\r\n]){NO_SPACE}")


def show_html_as_text(text: str) -> str:
    """Let Markdown show the tags of a text instead of obeying them."""
    return outside_of_code(text, lambda prose: OBEYED.sub(lambda match: NAMES[match[0]], prose))


def text_of_shown(shown: str) -> str:
    """Undo `show_html_as_text`, exactly."""
    return outside_of_code(shown, lambda prose: SHOWN.sub(lambda m: CHARACTERS[m[0]], prose))


def show_as_code(text: str) -> str:
    """Give Markdown for a text as a span of code.

    An empty line would end it, and so would a line that begins a heading or a list; none is either
    behind a space without width.
    """
    text = LINE_END.sub(rf"\g<0>{NO_SPACE}", text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}"


def text_of_code(shown: str) -> str:
    """Undo `show_as_code`, exactly."""
    begin = len(shown) - len(shown.lstrip("`")) + 1
    return WITHOUT_SPACE.sub(r"\1", shown[begin:-begin])


def outside_of_code(text: str, change: Callable[[str], str]) -> str:
    """Change what Markdown does not show as it stands.

    Names put in place of characters neither make nor end code, so the way back finds the same code.
    """
    return "".join(piece if is_code else change(piece) for piece, is_code in pieces(text))


def pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Split a text into pieces that are code, and pieces that are not.

    Where it is not simple to say what Markdown takes for code, indented lines in a list, none is
    assumed: a name may be seen where a character was meant, but no tag is obeyed.
    """
    paragraph, fence, column, seen_item, after_blank = "", "", 0, False, True
    for line in LINE.findall(text):
        is_indented = INDENTED.match(line) is not None
        is_blank = not line.strip()
        if fence and not is_blank and len(line) - len(line.lstrip()) < column:
            fence = ""  # with the item of a list that it stood in
        if fence:
            if (seen_item or not is_indented) and closes(line, fence):
                fence, after_blank = "", False
            yield line, True
            continue
        opened = None if is_indented and not seen_item else FENCE.match(line)
        is_code = is_indented and after_blank and not seen_item and not is_blank
        is_item = ITEM.match(line) is not None and not is_code
        if opened or is_code or is_blank or is_item or HEADING.match(line):
            yield from spans(paragraph)
            paragraph = ""
        seen_item = seen_item or is_item
        after_blank = is_blank or is_code
        if opened:
            fence = opened["fence"]
            column = opened.start("fence") if seen_item and opened.start("fence") > 1 else 0
        if opened or is_code:
            yield line, True
        else:
            paragraph += line
    yield from spans(paragraph)


def closes(line: str, fence: str) -> bool:
    """Say whether a line ends the block of code that a fence has begun."""
    stripped = line.strip()
    return len(stripped) >= len(fence) and not stripped.strip(fence[0])


def spans(paragraph: str) -> Iterator[tuple[str, bool]]:
    """Split a paragraph: a run of backticks up to the next one of its length is code."""
    runs = list(RUN.finditer(paragraph))
    of_length: dict[int, list[int]] = defaultdict(list)
    for number, run in enumerate(runs):
        of_length[len(run["ticks"])].append(number)
    done = number = 0
    while number < len(runs):
        run = runs[number]
        begin = run.start("ticks") + len(run["escapes"]) % 2  # a backtick may be escaped
        closers = of_length[run.end() - begin]
        place = bisect_right(closers, number)
        if begin == run.end() or place == len(closers):
            number += 1
            continue
        number = closers[place] + 1
        end = runs[closers[place]].end()
        yield paragraph[done:begin], False
        yield paragraph[begin:end], True
        done = end
    yield paragraph[done:], False
