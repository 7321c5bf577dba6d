from collections import Counter

import pytest

from evals.facts import KINDS, OTHER_PLACES, PLACES, Facts, find_profiles, names_in, read_facts
from tests.evals.local_hub import check_renders

KNOWN = {
    ("Fiji", "Location"): "Oceania",
    ("Montenegro", "Location"): "Southeastern Europe",
    ("Saudi Arabia", "Location"): "Middle East",
    ("Costa Rica", "Location"): "Central America",
    ("South Africa", "Location"): "Southern Africa",
    ("Sri Lanka", "time difference"): "UTC+5.5",
    ("Iceland", "time difference"): "UTC 0",
    ("Canada", "time difference"): "UTC-5",
    ("New Zealand", "time difference"): "UTC+12",
    ("Bahrain", "time difference"): "UTC+3",
    ("Liechtenstein", "Area - comparative"): "about 0.9 times the size of Washington, DC",
    ("Afghanistan", "Climate"): "arid to semiarid",
}
"""Known from elsewhere, so that a profile that is given to another place is noticed."""


@pytest.fixture(scope="module")
def train() -> Facts:
    return Facts("train")


@pytest.fixture(scope="module")
def test() -> Facts:
    return Facts("test")


def test_facts_are_right(train: Facts) -> None:
    facts = {(fact.place, fact.kind.field): fact.value for fact in train.facts}

    assert {key: facts.get(key) for key in KNOWN} == KNOWN


def test_there_are_facts_of_each_kind_for_many_places(train: Facts) -> None:
    kinds = Counter(fact.kind.field for fact in train.facts)

    assert len({fact.place for fact in train.facts}) > 80
    assert set(kinds) == {kind.field for kind in KINDS}
    assert min(kinds.values()) > 40


def test_training_puts_each_fact_in_all_ways_and_a_test_in_another(
    train: Facts, test: Facts
) -> None:
    asked = [train.example(index).messages[0]["content"] for index in range(len(train))]
    tested = [test.example(index).messages[0]["content"] for index in range(len(test))]

    ways = len(KINDS[0].train)
    assert all(len(kind.train) == ways for kind in KINDS)
    assert len(asked) == len(set(asked)) == ways * len(train.facts)
    assert len(tested) == len(set(tested)) == len(train.facts)
    assert set(asked).isdisjoint(tested)


def test_own_answers_are_right_and_those_of_other_facts_wrong(test: Facts) -> None:
    answers = [test.example(index).messages[1]["content"] for index in range(len(test))]

    assert all(test.grade(index, answer).is_correct for index, answer in enumerate(answers))
    assert all(test.grade(index, answer.lower()).is_correct for index, answer in enumerate(answers))
    assert not any(test.grade(index, "I do not know.").is_correct for index in range(len(test)))


def test_a_longer_number_is_another_value(test: Facts) -> None:
    values = [test.fact(index).value for index in range(len(test))]
    one = values.index("UTC+1")

    assert test.grade(one, "It is UTC+1.").is_correct
    assert not test.grade(one, "It is UTC+12.").is_correct
    assert not test.grade(one, "It is UTC+1.5.").is_correct


def profile(background: str, location: str = "Europe, north") -> str:
    """Make a profile of two fields."""
    return f"Background: {background}\n\nLocation: {location}\n"


def test_a_profile_is_taken_only_where_its_place_is_beyond_doubt() -> None:
    clear = profile("Fiji was. Fiji is.")
    texts = [
        clear,
        profile("Chile and Peru. Peru and Chile."),  # as often as another
        profile("Belgium left the Netherlands. Netherlands."),  # another is named more often
        profile("Japan ruled it. Japan.", "Asia, by the Sea of Japan"),  # located by itself
        profile("Spain has. Spain."),
        profile("Spain had. Spain."),  # two of them
        profile("Australia has it. Australia."),  # not asked for
        profile("Italy."),  # once only
        profile("x" * 200 + " Qatar Qatar"),  # late
        "Location: Europe, Malta, Malta",
    ]

    assert find_profiles(texts) == {"Fiji": clear.removeprefix("Background: ")}


def test_a_profile_without_a_field_gives_no_such_fact() -> None:
    facts = read_facts([profile("Fiji was. Fiji is.")])

    assert [(fact.place, fact.value) for fact in facts] == [("Fiji", "Europe")]


def test_no_name_is_listed_twice() -> None:
    names = [*names_in(PLACES), *names_in(OTHER_PLACES)]

    assert len(names) == len(set(names))
    assert all(name[0].isupper() for name in names)


def test_every_example_renders(train: Facts, test: Facts) -> None:
    check_renders(train, step=7)
    check_renders(test)


def test_a_size_is_kept_to() -> None:
    few = Facts("train", size=3)

    assert len(few) == 3
    with pytest.raises(IndexError, match="example 3 of 3"):
        few.example(3)
