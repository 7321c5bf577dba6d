"""A command as a shell gave it: as it was typed, and what its flags alone would not tell.

A variable that is not set leaves an empty word, and a glob without quotes leaves all its files.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise, takewhile

from nanoray.config import InputError

TEXTS = {"--prompt", "--system"}
"""Flags whose text may be empty."""


def typed_command() -> str:
    """Give the command of this process, to be typed again; empty in a process that Ray started."""
    is_typed = os.path.basename(sys.argv[0]) != "default_worker.py"
    return shlex.join(["python", *sys.argv]) if is_typed else ""


def check_words(words: Sequence[str]) -> None:
    """Check the words of a command after its name.

    Raises:
        InputError: one is empty, or several files follow --data.
    """
    for before, word in pairwise(["", *words]):
        name, sign, value = word.partition("=")
        if TEXTS & {before, name}:
            continue
        if not word or (name.startswith("--") and sign and not value):
            is_flag = before.startswith("--") and "=" not in before
            name = name or (before if is_flag else "An argument")
            raise InputError(
                f"{name} is empty, as with a variable of the shell that is not set. "
                "Give a value, or leave it out."
            )
    for place, word in enumerate(words):
        if word.startswith("--") and word.endswith(("--data", ".data")):
            _check_files(word, words[place + 1 :])


def _check_files(name: str, words: Sequence[str]) -> None:
    """Raise an InputError if a flag of one value is followed by several files."""
    files = list(takewhile(lambda word: not word.startswith("-"), words))
    if len(files) > 1 and all(map(os.path.lexists, files)):
        folder, ending = os.path.dirname(files[0]), os.path.splitext(files[0])[1]
        raise InputError(
            f"{name} is followed by {len(files)} files ({', '.join(files[:2])}, ...), as a glob "
            f"without quotes leaves them. Quote it: {name} '{os.path.join(folder, '*' + ending)}'"
        )
