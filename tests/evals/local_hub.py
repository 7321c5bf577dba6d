"""The public datasets that lie beside the repository, for tests without a network."""

from pathlib import Path

import pytest

from nanoray.task import Task
from nanoray.text.chat import render, render_for_completion
from tests.support import tiny_tokenizer

SHARED_DATA = Path(__file__).parents[2].parent / "shared/data"


def local_hub() -> str:
    """Give the folder that stands for the hub, or skip the test."""
    return str(existing(SHARED_DATA / "hub"))


def local_words() -> str:
    """Give the file of the public list of words, or skip the test."""
    return str(existing(SHARED_DATA / "words_alpha.txt"))


def existing(path: Path) -> Path:
    """Give a path, or skip the test."""
    if not path.exists():
        pytest.skip(f"needs {path}")
    return path


def check_renders(task: Task, step: int = 1) -> None:
    """Render every example, as whole conversations and as questions.

    A question must be the beginning of its conversation: what is asked in an evaluation is what
    training went on from.
    """
    tokenizer = tiny_tokenizer()
    for index in range(0, len(task), step):
        messages = task.example(index).messages
        ids, mask = render(messages, tokenizer, 1_000_000)
        question = render_for_completion(messages, tokenizer, 1_000_000)
        assert ids[: len(question)] == question
        assert not any(mask[: len(question)])
        assert any(mask)
