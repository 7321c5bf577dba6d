"""Results on storage: added to, never overwritten by others, and read back."""

import dataclasses
from pathlib import Path

import pytest

from evals.saved_results import ResultFolder, read_reports
from nanoray.storage import RunFolder
from nanoray.train.checkpoint_name import SavedModel
from tests.evals.test_results import ONE, TWO, result
from tests.saved_model import save_model
from tests.support import tiny_gpt, tiny_tokenizer

SETTINGS = {"dtype": "float32", "max_per_task": None}


@pytest.fixture
def saved(tmp_path: Path) -> SavedModel:
    tokenizer = tiny_tokenizer()
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    save_model(folder, tiny_gpt(vocab_size=tokenizer.vocab_size), tokenizer)
    return SavedModel(folder, 10)


def test_tasks_that_are_measured_later_join_the_report(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)
    folder.save(ONE)
    folder.save(TWO)
    folder.write_report([])
    chat = result("Chat", "1", group="chat")

    folder.save(chat)
    report = folder.write_report([chat])

    assert [task.name for task in report.tasks] == ["one", "two", "Chat"]
    assert report.mean("core") is not None
    assert read_reports(saved.folder) == [report]
    [table] = Path(folder.path).glob("core-*.csv")
    assert table.read_text().startswith("Task ")


def test_tasks_beside_the_suites_are_reported_and_belong_to_no_mean(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)
    chat = dataclasses.replace(result("Chat", "11", group="chat"), suite=("Chat",))
    beside = dataclasses.replace(result("Identity", "00", group="chat"), suite=("Chat",))

    report = folder.write_report([beside, chat])

    assert [task.name for task in report.tasks] == ["Chat", "Identity"]
    mean = report.mean("chat")
    assert mean is not None
    assert mean.value == chat.centered
    assert folder.write_report([beside]).mean("chat") is None


def test_other_questions_settings_and_weights_have_results_of_their_own(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)
    other_way = ResultFolder.of_checkpoint(saved, {**SETTINGS, "dtype": "bfloat16"})
    other_weights = dataclasses.replace(folder, weights="other")
    other_questions = dataclasses.replace(ONE, questions="others", outcomes="0000")
    folder.save(ONE)

    folder.save(other_questions)

    assert sorted(task.questions for task in folder.results()) == ["one 4", "others"]
    assert other_way.results() == other_weights.results() == []
    assert folder.write_report([ONE]).tasks == (ONE,)
    assert folder.write_report([other_questions]).tasks == (other_questions,)


def test_a_model_that_belongs_to_no_run_has_its_results_in_the_storage(tmp_path: Path) -> None:
    folder = ResultFolder.of_folder(str(tmp_path), "/models/gpt2/", "ab" * 32, SETTINGS)

    folder.save(ONE)

    assert folder.results() == [ONE]
    assert list(tmp_path.glob(".evals/gpt2-abababab/one-*.json"))


def test_weights_are_marked_as_evaluated(saved: SavedModel) -> None:
    before = saved.is_evaluated()
    saved.mark_evaluated()

    assert (before, saved.is_evaluated()) == (False, True)
