"""Names on the command line become exams."""

from pathlib import Path

import pytest

from evals import CHAT_TASKS
from evals.exam_plan import ExamConfig, plan_exams
from nanoray.config import DataError, InputError
from nanoray.inference.sandbox import strongest_level
from tests.evals.local_hub import local_hub
from tests.evals.small_bundle import write_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


def test_core_is_all_tasks_of_the_bundle(bundle: Path) -> None:
    plan = plan_exams(ExamConfig(eval_bundle=str(bundle)))

    assert plan.names == ["colors", "pronouns", "capitals"]
    assert plan.available == {"colors": 24, "pronouns": 8, "capitals": 8}
    assert plan.suites["core"] == ("colors", "pronouns", "capitals")
    assert len({exam.fingerprint for exam in plan.exams}) == 3


def test_some_tasks_of_a_bundle_can_be_named_and_sampled(bundle: Path) -> None:
    plan = plan_exams(ExamConfig(tasks="capitals, colors", eval_bundle=str(bundle), max_per_task=5))

    assert [(exam.name, len(exam)) for exam in plan.exams] == [("colors", 5), ("capitals", 5)]
    assert plan.available["colors"] == 24
    assert plan.settings["max_per_task"] == 5


def test_tasks_of_conversations_need_no_bundle() -> None:
    plan = plan_exams(ExamConfig(tasks="humaneval,arc-easy", hub_dir=local_hub(), max_per_task=7))

    assert [(exam.name, len(exam)) for exam in plan.exams] == [("ARC-Easy", 7), ("HumanEval", 7)]
    assert plan.available == {"ARC-Easy": 2376, "HumanEval": 164}
    assert [exam.sandbox for exam in plan.exams] == [None, strongest_level()]


def test_chat_is_the_six_tasks_of_chatcore() -> None:
    plan = plan_exams(
        ExamConfig(tasks="chat", hub_dir=local_hub(), words="embedded", max_per_task=3)
    )

    assert plan.names == list(CHAT_TASKS) == list(plan.suites["chat"])


def test_our_own_tasks_can_be_named_beside_chat(tmp_path: Path) -> None:
    (tmp_path / "me.txt").write_text("name: Rob\nmaker: Ann")

    plan = plan_exams(
        ExamConfig(tasks="facts,identity", identity_file=str(tmp_path / "me.txt"), max_per_task=3)
    )

    assert plan.names == ["Identity", "Facts"]
    assert plan.available["Identity"] == 256


def test_tasks_say_where_their_questions_come_from(bundle: Path, tmp_path: Path) -> None:
    asked = ExamConfig(tasks="core,gsm8k,facts", eval_bundle=str(bundle), hub_dir=local_hub())
    elsewhere = write_bundle(tmp_path / "elsewhere")

    sources = plan_exams(asked).sources
    same = plan_exams(ExamConfig(tasks="colors", eval_bundle=str(elsewhere))).sources
    (elsewhere / "eval_data/b/capitals.jsonl").write_text('{"context": "a", "continuation": "b"}\n')
    other = plan_exams(ExamConfig(tasks="colors", eval_bundle=str(elsewhere))).sources

    assert sources["GSM8K"] == local_hub()
    assert "Facts" not in sources
    assert same["colors"] == sources["capitals"] != other["colors"]


def test_an_unknown_task_is_named(bundle: Path) -> None:
    with pytest.raises(
        InputError, match=r"hellosweg is no task\. There are core, chat, colors, .*gsm8k"
    ):
        plan_exams(ExamConfig(tasks="colors,hellosweg", eval_bundle=str(bundle)))
    with pytest.raises(InputError, match="nothing is no task"):
        plan_exams(ExamConfig(tasks=",", eval_bundle=str(bundle)))


def test_a_typo_is_told_before_the_published_bundle_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evals.exam_plan.open_bundle", lambda address: [][0])

    with pytest.raises(InputError, match="gsm8 is no task"):
        plan_exams(ExamConfig(tasks="gsm8"))


def test_names_may_be_written_as_the_table_shows_them(bundle: Path) -> None:
    asked = ExamConfig(tasks="Colors,Facts,IDENTITY", eval_bundle=str(bundle), max_per_task=20)

    assert plan_exams(asked).names == ["colors", "Identity", "Facts"]


def test_a_bundle_without_a_file_is_no_core(bundle: Path) -> None:
    (bundle / "eval_data/b/capitals.jsonl").unlink()

    with pytest.raises(DataError, match=r"has no eval_data/b/capitals\.jsonl.*--skip-missing"):
        plan_exams(ExamConfig(eval_bundle=str(bundle)))
    plan = plan_exams(ExamConfig(eval_bundle=str(bundle), skip_missing=True))
    assert plan.names == ["colors", "pronouns"]
    with pytest.raises(InputError, match="Of --tasks capitals none is there"):
        plan_exams(ExamConfig(tasks="capitals", eval_bundle=str(bundle), skip_missing=True))


def test_too_few_questions_for_the_shots_are_told_of(bundle: Path) -> None:
    with pytest.raises(DataError, match=r"colors shows 2 solved .* and there are 2 in all"):
        plan_exams(ExamConfig(eval_bundle=str(bundle), max_per_task=2))
    with pytest.raises(InputError, match="--max-per-task 0 is too small"):
        ExamConfig(max_per_task=0)
