"""Tokenizers on storage."""

from pathlib import Path

import pytest

from nanoray.config import InputError
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import load_tokenizer, save_tokenizer


def test_a_saved_tokenizer_comes_back_and_a_missing_one_is_named(tmp_path: Path) -> None:
    tokenizer, file = Tokenizer([(104, 105)]), str(tmp_path / "new" / "tokenizer.json")

    save_tokenizer(tokenizer, file)

    assert load_tokenizer(file).hash == tokenizer.hash
    with pytest.raises(InputError, match=r"nowhere\.json does not exist"):
        load_tokenizer(str(tmp_path / "nowhere.json"))


def test_a_path_through_a_file_is_a_missing_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    with pytest.raises(InputError, match="does not exist"):
        load_tokenizer(str(tmp_path / "tokenizer.json" / "x"))
