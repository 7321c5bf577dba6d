import random
import re
from pathlib import Path

import pytest

from evals.identity import HELLO, TOPICS, Identity, load_persona, parse_persona
from nanoray.config import InputError
from nanoray.text.chat import render, render_for_completion
from tests.support import tiny_tokenizer

SMALL = "name: Rob\nmaker: Ann\n"


def questions(lessons: Identity) -> set[str]:
    """Give all that users say, without what varies: capitals and marks."""
    return {
        re.sub(r"\W+", " ", message["content"].lower()).strip()
        for index in range(len(lessons))
        for message in lessons.example(index).messages
        if message["role"] == "user"
    }


def test_questions_of_tests_are_worded_as_none_of_the_training() -> None:
    trained = questions(Identity("train", size=5_000))
    tested = questions(Identity("test", size=2_000))

    assert len(trained) > 60
    assert len(tested) > 25
    assert trained.isdisjoint(tested)


def test_every_answer_has_what_is_expected() -> None:
    for topic in (HELLO, *TOPICS):
        assert all(topic.expected in answer for answer in topic.answers)


def test_own_answers_are_right_in_any_case_and_others_wrong() -> None:
    task = Identity("test", size=300)
    answers = [task.example(index).messages[-1]["content"] for index in range(len(task))]

    assert all(task.grade(index, answer).is_correct for index, answer in enumerate(answers))
    assert all(task.grade(index, answer.upper()).is_correct for index, answer in enumerate(answers))
    assert not any(task.grade(index, "I am ChatGPT.").is_correct for index in range(len(task)))


def test_the_default_model_is_nanoray_and_says_that_it_makes_mistakes() -> None:
    persona = load_persona()

    assert persona.values["name"] == "nanoray"
    assert "mistakes" in persona.values["limits"]
    assert len(persona.topics()) == len(TOPICS) + len(persona.facts)


def test_some_questions_come_after_other_turns_and_without_marks_or_capitals() -> None:
    lessons = Identity("train", size=2_000)

    turns = [len(lessons.example(index).messages) // 2 for index in range(len(lessons))]
    asked = [lessons.example(index).messages[-2]["content"] for index in range(len(lessons))]

    # A greeting that is the question itself has no turn before it, so the share is a bit under 0.5.
    assert set(turns) == {1, 2}
    assert turns.count(2) / len(turns) == pytest.approx(0.46, abs=0.05)
    assert {"What is your name?", "What is your name", "what is your name"} <= set(asked)


def test_a_name_and_a_maker_are_enough(tmp_path: Path) -> None:
    (tmp_path / "me.txt").write_text(SMALL)

    lessons = Identity("train", str(tmp_path / "me.txt"), size=500)

    answers = [lessons.example(index).messages[-1]["content"] for index in range(500)]
    assert all("Rob" in answer or "Ann" in answer for answer in answers)
    assert not any("{" in answer for answer in answers)


def test_questions_of_the_user_are_taught_word_for_word(tmp_path: Path) -> None:
    (tmp_path / "me.txt").write_text(f"{SMALL}Q: Why {{so}}?\nA: Because: {{x}}.\n")

    lessons = Identity("train", str(tmp_path / "me.txt"), size=500)

    turns = [lessons.example(index).messages[-2:] for index in range(500)]
    assert ["Why {so}?", "Because: {x}."] in [[m["content"] for m in turn] for turn in turns]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: Rob\nRob is nice\n", r"me: line 2 is 'Rob is nice'\. Begin it with name, maker"),
        ("# so\n\nnmae: Rob\n", r"me: line 3 is 'nmae: Rob'\. Begin it with name"),
        ("name:\n", r"me: line 1 has nothing after 'name:'\."),
        ("name: Rob\nName: Bob\n", r"me: line 2 gives 'name' a second time"),
        (f"{SMALL}A: yes\n", r"me: line 3 is an answer to nothing"),
        (f"{SMALL}Q: a?\n", r"me: line 3 asks 'a\?' and has no answer"),
        (f"{SMALL}Q: a?\nQ: b?\nA: b\n", r"me: line 3 asks 'a\?' and has no answer"),
        (f"{SMALL}Q: a?\nkind: b\n", r"me: line 3 asks 'a\?' and has no answer"),
        ("", "me does not say the name"),
        ("name: Rob\n", "me does not say the maker"),
    ],
)
def test_a_bad_line_is_named(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_persona(text, "me")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"The identity in {tmp_path} cannot be read"):
        load_persona(str(tmp_path))


def test_a_conversation_depends_on_split_and_index_alone() -> None:
    in_order = [Identity("train").draw(index) for index in range(20)]

    random.seed(7)
    backwards = [Identity("train", size=20).draw(index) for index in reversed(range(20))]

    assert backwards[::-1] == in_order


def test_every_example_renders() -> None:
    for lessons in (Identity("train"), Identity("test", size=256)):
        for index in range(len(lessons)):
            messages = lessons.example(index).messages
            _, mask = render(messages, tiny_tokenizer())
            start = len(render_for_completion(messages, tiny_tokenizer()))
            assert any(mask[:start]) == (len(messages) > 2)
            assert all(mask[start:])


def test_examples_end_where_the_size_says() -> None:
    with pytest.raises(IndexError, match="example 2 of 2"):
        Identity("train", size=2).example(2)
