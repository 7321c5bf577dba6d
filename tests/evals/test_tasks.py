"""Tests of the table of tasks in evals/__init__.py."""

from pathlib import Path

import pytest

from evals import CHAT_TASKS, TASKS, TaskSettings
from evals.spelling import SimpleSpelling
from evals.words import embedded_words
from nanoray.config import InputError
from nanoray.task import Task
from tests.evals.local_hub import local_hub, local_words

FACTS = {
    "arc-easy": ("ARC-Easy", 0.25, 2_376),
    "arc-challenge": ("ARC-Challenge", 0.25, 1_172),
    "mmlu": ("MMLU", 0.25, 14_042),
    "gsm8k": ("GSM8K", 0.0, 1_319),
    "humaneval": ("HumanEval", 0.0, 164),
    "spellingbee": ("SpellingBee", 0.0, 256),
}


def test_tasks_have_the_names_baselines_and_sizes_that_nanochat_publishes() -> None:
    settings = TaskSettings(hub_dir=local_hub(), words=local_words())

    made = {name: make(settings) for name, make in TASKS.items() if name in FACTS}

    facts = {name: (task.name, task.baseline, len(task)) for name, task in made.items()}
    assert list(facts.items()) == list(FACTS.items())


def test_the_six_tasks_of_chatcore_come_first_and_then_our_own() -> None:
    names = list(TASKS)

    assert names[:6] == list(FACTS) == [name.lower() for name in CHAT_TASKS]
    assert names[6:] == ["identity", "simplespelling", "arithmetic", "facts"]


@pytest.mark.parametrize("name", ["identity", "arithmetic", "facts"])
def test_our_own_tasks_need_no_data(name: str) -> None:
    task = TASKS[name](TaskSettings())

    assert task.name.lower() == name
    assert 200 < len(task) <= 256
    assert task.baseline == 0.0


@pytest.mark.parametrize("name", [name for name in FACTS if name != "spellingbee"])
def test_each_task_reads_from_the_folder_that_is_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--hub-dir .* is no folder"):
        TASKS[name](TaskSettings(hub_dir=str(tmp_path / "none")))


def test_the_list_of_words_is_the_one_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n")

    for name in ("spellingbee", "simplespelling"):
        with pytest.raises(InputError, match=r"words\.txt has no words"):
            TASKS[name](TaskSettings(words=str(tmp_path / "words.txt")))


def test_no_word_that_is_to_be_spelled_was_learned() -> None:
    settings = TaskSettings(words="embedded")
    learned = SimpleSpelling(embedded_words(), "train", size=20_000)

    asked = TASKS["simplespelling"](settings)

    assert len(asked) == 256
    assert {one(asked, i) for i in range(256)}.isdisjoint(one(learned, i) for i in range(20_000))


def one(task: Task, index: int) -> str:
    """Give the question of an example."""
    question = task.example(index).messages[0]["content"]
    assert isinstance(question, str)
    return question


def test_the_identity_is_the_one_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "me.txt").write_text("name: Rob")

    with pytest.raises(InputError, match=r"me\.txt does not say the maker"):
        TASKS["identity"](TaskSettings(identity_file=str(tmp_path / "me.txt")))
