"""Results on storage: added to, never overwritten by others, and read back."""

import dataclasses
from pathlib import Path

import pytest

from evals.results import TaskResult
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
    chat = dataclasses.replace(result("Chat", "1", group="chat"), asked_at=1.0)

    folder.save(chat)
    report = folder.write_report([chat])

    assert [task.name for task in report.tasks] == ["one", "two", "Chat"]
    assert report.mean("core") is not None
    assert read_reports(saved.folder)[-1] == report
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


def from_source(source: str, asked_at: float, *results: TaskResult) -> list[TaskResult]:
    """Give results as other questions with the same names would have them."""
    return [
        dataclasses.replace(
            one, source=source, asked_at=asked_at, questions=f"{one.name} of {source}"
        )
        for one in results
    ]


def test_a_mean_is_never_made_of_two_bundles(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)
    first, second = from_source("A", 1, ONE, TWO), from_source("B", 2, TWO, ONE)
    for one in [*first, *second]:
        folder.save(one)
    chat = dataclasses.replace(result("Chat", "1", group="chat"), asked_at=3)

    both = folder.write_report([chat])
    only_one = folder.write_report(from_source("A", 4, ONE))
    third = folder.write_report(from_source("C", 5, ONE))

    assert [task.source for task in both.tasks] == ["B", "B", "hub"]
    assert [task.source for task in only_one.only(["one", "two"]).tasks] == ["A", "A"]
    assert [task.name for task in third.tasks if task.group == "core"] == ["one"]
    assert third.mean("core") is None


def test_of_two_results_of_a_task_the_newest_counts(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)
    # Names of files are hashes, so each order of two times is tried with each pair of levels.
    for strong, weak in ((1, 2), (2, 1)):
        pair = [
            dataclasses.replace(
                result("Chat", "1", group="chat"), sandbox=level, asked_at=float(time)
            )
            for level, time in (("strong", strong), ("weak", weak))
        ]
        for one in pair:
            folder.save(one)

        report = folder.write_report([ONE])

        assert [t.asked_at for t in report.tasks if t.name == "Chat"] == [2]


def test_reports_of_other_sources_stand_beside_each_other(saved: SavedModel) -> None:
    folder = ResultFolder.of_checkpoint(saved, SETTINGS)

    newer = folder.write_report(from_source("B", 7, ONE, TWO))
    older = folder.write_report(from_source("A", 5, ONE, TWO))

    assert read_reports(saved.folder) == [older, newer]
    assert len(list(Path(folder.path).glob("core-*.csv"))) == 2


def test_a_model_that_belongs_to_no_run_has_its_results_in_the_storage(tmp_path: Path) -> None:
    folder = ResultFolder.of_folder(str(tmp_path), "/models/gpt2/", "ab" * 32, SETTINGS)

    folder.save(ONE)

    assert folder.results() == [ONE]
    assert list(tmp_path.glob(".evals/gpt2-abababab/one-*.json"))


def test_weights_are_marked_as_evaluated(saved: SavedModel) -> None:
    before = saved.is_evaluated()
    saved.mark_evaluated()

    assert (before, saved.is_evaluated()) == (False, True)
