import shlex
import sys
from pathlib import Path

import pytest

from nanoray.config import InputError
from nanoray.shell_words import check_words, typed_command


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--data", ""], "--data"),
        (["--depth", "4", "--storage="], "--storage"),
        (["--run", "", "--depth", "4"], "--run"),
        (["--pretrain.data", ""], "--pretrain.data"),
        (["", "--depth", "4"], "An argument"),
        (["--others", "a", ""], "An argument"),
        (["--depth=4", ""], "An argument"),
    ],
)
def test_an_empty_word_is_refused_with_the_flag_that_it_follows(
    words: list[str], named: str
) -> None:
    with pytest.raises(InputError, match=f"^{named} is empty, as with a variable"):
        check_words(words)


@pytest.mark.parametrize("flag", ["--data", "--pretrain.data"])
def test_a_glob_without_quotes_is_told_with_the_quotes(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    files = [f"texts/{name}.parquet" for name in "abc"]
    for file in files:
        (tmp_path / file).write_text("")

    with pytest.raises(InputError) as caught:
        check_words(["--depth", "4", flag, *files, "--run", "r"])

    assert str(caught.value) == (
        f"{flag} is followed by 3 files (texts/a.parquet, texts/b.parquet, ...), as a glob without "
        f"quotes leaves them. Quote it: {flag} 'texts/*.parquet'"
    )


def test_other_words_are_left_to_the_flags(tmp_path: Path) -> None:
    there = str(tmp_path)

    check_words(["--data", there, "--run", "r", "--mixture", "a=1", "--x", "-1"])
    check_words(["--data", there, "nowhere"])
    check_words(["--compare", there, there])
    check_words([])


def test_a_prompt_may_be_empty() -> None:
    check_words(["--system", "", "--prompt="])


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py", "--data", "a folder/*.parquet"])

    assert shlex.split(typed_command()) == ["python", *sys.argv]


def test_a_process_that_ray_started_has_no_command_of_a_person(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/lib/ray/default_worker.py", "--redis-password=x"])

    assert typed_command() == ""
