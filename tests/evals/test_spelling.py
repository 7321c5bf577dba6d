import random
from typing import Literal

import pytest

from evals.gsm8k import answer_text
from evals.spelling import TEMPLATES, SimpleSpelling, SpellingBee
from evals.words import is_test_word, load_words
from nanoray.config import InputError
from nanoray.inference.calculator import FORBIDDEN_WORDS, calculate
from tests.evals.local_hub import check_renders, local_words

GOLDEN_WORDS = ["strawberry", "banana", "cat"]


@pytest.fixture(scope="module")
def public_words() -> list[str]:
    return load_words(local_words())


@pytest.mark.parametrize("rule", ["by_word", "nanochat"])
def test_questions_are_drawn_as_nanochat_draws_them(rule: Literal["by_word", "nanochat"]) -> None:
    task = SpellingBee(GOLDEN_WORDS, "train", split_rule=rule)

    drawn = []
    for index in range(4):
        question, answer = task.example(index).messages
        parts = answer["content"]
        drawn.append((question["content"], parts[2]["text"], parts[3]["text"]))

    assert drawn == [
        ("count the number of \"a\" in 'banana'?", "'banana'.count('a')", "3"),
        ("how many times is 't' in 'strawberry'", "'strawberry'.count('t')", "1"),
        ("Find the count of \"b\" in 'strawberry'?", "'strawberry'.count('b')", "1"),
        ("In \"strawberry\", count the 'r'", "'strawberry'.count('r')", "3"),
    ]


def test_an_answer_counts_by_hand_and_then_with_the_tool() -> None:
    parts = SpellingBee(GOLDEN_WORDS, "train").example(3).messages[1]["content"]

    kinds = [part["type"] for part in parts]
    lines = parts[0]["text"].splitlines()

    assert kinds == ["text", "text", "python", "python_output", "text"]
    assert lines[2:14] == [
        "strawberry:s,t,r,a,w,b,e,r,r,y",
        "",
        "1:s",
        "2:t",
        "3:r hit! count=1",
        "4:a",
        "5:w",
        "6:b",
        "7:e",
        "8:r hit! count=2",
        "9:r hit! count=3",
        "10:y",
    ]
    assert parts[-1]["text"].splitlines()[-1] == "#### 3"


def test_words_to_spell_are_drawn_as_nanochat_draws_them() -> None:
    task = SimpleSpelling(GOLDEN_WORDS, "train")

    first, second = (task.example(index).messages for index in range(2))

    assert first[0]["content"] == "Spell the word: strawberry"
    assert first[1]["content"] == "strawberry:s,t,r,a,w,b,e,r,r,y"
    assert second[0]["content"] == "Spell the word: banana"
    assert task.grade(0, " strawberry:s,t,r,a,w,b,e,r,r,y\n").is_correct
    assert not task.grade(1, "strawberry:s,t,r,a,w,b,e,r,r,y").is_correct


def test_there_are_as_many_templates_in_each_language_as_nanochat_has() -> None:
    assert len(TEMPLATES) == len(set(TEMPLATES)) == 30 + 4 + 4 + 4 + 3 + 3 + 3
    assert all(t.count("{letter}") == t.count("{word}") == 1 for t in TEMPLATES)
    assert all(t.format(letter="", word="").isascii() for t in TEMPLATES[:30])
    assert not any(template.endswith(("?", ".", " ")) for template in TEMPLATES)


def test_no_word_of_a_test_is_seen_in_training(public_words: list[str]) -> None:
    test = SpellingBee(public_words, "test")
    bee = SpellingBee(public_words, "train", size=80_000)
    simple = SimpleSpelling(public_words, "train", size=200_000)

    tested = {test.draw(index)[1] for index in range(len(test))}
    trained = {bee.draw(index)[1] for index in range(0, len(bee), 4)}
    trained |= {simple.draw(index) for index in range(0, len(simple), 4)}

    assert len(tested) > 250
    assert tested.isdisjoint(trained)
    assert all(map(is_test_word, tested))
    assert not any(map(is_test_word, trained))


def test_the_rule_of_nanochat_tests_what_was_trained_on(public_words: list[str]) -> None:
    train = SpellingBee(public_words, "train", split_rule="nanochat", size=257)
    test = SpellingBee(public_words, "test", split_rule="nanochat")

    assert [test.draw(i) for i in range(256)] == [train.draw(i + 1) for i in range(256)]


def test_training_by_words_leaves_little_out_of_what_nanochat_trains_on(
    public_words: list[str],
) -> None:
    assert len(SpellingBee(public_words, "train", split_rule="nanochat").draws.words) == 370_099
    assert len(SpellingBee(public_words, "train").draws.words) > 330_000
    assert len(SimpleSpelling(public_words, "test").draws.words) > 35_000


def test_own_answers_are_right_and_other_counts_wrong(public_words: list[str]) -> None:
    task = SpellingBee(public_words, "test")
    answers = [answer_text(task.example(index).messages[1]["content"]) for index in range(256)]

    assert len(task) == 256
    assert all(task.grade(index, answer).is_correct for index, answer in enumerate(answers))
    assert not any(task.grade(index, f"{a}7").is_correct for index, a in enumerate(answers))
    assert not task.grade(0, "three").is_correct


def test_the_tool_gives_what_the_answer_says_it_gives(public_words: list[str]) -> None:
    task = SpellingBee(public_words, "train", size=20_000)

    refused = []
    for index in range(len(task)):
        parts = task.example(index).messages[1]["content"]
        value = calculate(parts[2]["text"])
        if value is None:
            refused.append(parts[2]["text"])
        else:
            assert value == parts[3]["text"]

    # "direct", say: the calculator refuses words that have "dir" in them, as nanochat's does.
    assert len(refused) < 0.005 * len(task)
    assert all(any(word in expression for word in FORBIDDEN_WORDS) for expression in refused)


def test_letters_and_question_marks_are_drawn_in_their_shares(public_words: list[str]) -> None:
    task = SpellingBee(public_words, "train", size=5_000)

    drawn = [task.draw(index) for index in range(len(task))]

    # A letter of the alphabet is by chance one of the word too, in about a third of the cases. The
    # standard error of a share of 5,000 is 0.7 % at most.
    own = sum(letter in word for _, word, letter in drawn) / len(drawn)
    assert own == pytest.approx(0.9 + 0.1 / 3, abs=0.03)
    assert sum(q.endswith("?") for q, _, _ in drawn) / len(drawn) == pytest.approx(0.5, abs=0.03)


def test_an_example_depends_on_its_index_alone() -> None:
    task = SpellingBee(GOLDEN_WORDS, "train")
    in_order = [task.draw(index) for index in range(20)]

    random.seed(7)
    backwards = [task.draw(index) for index in reversed(range(20))]

    assert backwards[::-1] == in_order


@pytest.mark.parametrize("task", [SpellingBee, SimpleSpelling])
def test_every_example_renders(
    task: type[SpellingBee] | type[SimpleSpelling], public_words: list[str]
) -> None:
    check_renders(task(public_words, "train", size=300))
    check_renders(task(public_words, "test"))


@pytest.mark.parametrize("task", [SpellingBee, SimpleSpelling])
def test_examples_end_where_the_size_says(
    task: type[SpellingBee] | type[SimpleSpelling],
) -> None:
    few = task(GOLDEN_WORDS, "train", size=2)

    assert len(few) == 2
    for index in (2, -1):
        with pytest.raises(IndexError, match=f"example {index} of 2"):
            few.example(index)


def test_a_list_too_short_to_have_words_for_tests_is_refused() -> None:
    with pytest.raises(InputError, match="has none for the test split: one word in ten is for"):
        SpellingBee(GOLDEN_WORDS, "test")
