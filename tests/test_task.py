"""The protocol of tasks: a class of one's own is one without a base class."""

import pytest

from nanoray.task import Example, Grade, JoinedTask, Task


class Doubling:
    name = "doubling"
    baseline = 0.0
    sandbox: str | None = None

    def __len__(self) -> int:
        return 10

    def example(self, index: int) -> Example:
        answer = {"role": "assistant", "content": str(2 * index)}
        return Example([{"role": "user", "content": f"2 * {index}?"}, answer])

    def grade(self, index: int, answer: str) -> Grade:
        right = answer == str(2 * index)
        return Grade(right, "" if right else "wrong")


def own_answers_right(task: Task) -> int:
    """Count the examples whose own answer is graded as right."""
    answers = [task.example(i).messages[-1]["content"] for i in range(len(task))]
    return sum(task.grade(i, answer).is_correct for i, answer in enumerate(answers))


def test_whatever_has_examples_and_grades_is_a_task() -> None:
    assert own_answers_right(Doubling()) == 10
    assert Doubling().grade(3, "7") == Grade(False, "wrong")


def test_tasks_are_joined_one_after_the_other() -> None:
    joined = JoinedTask([Doubling(), Doubling()])

    assert (len(joined), joined.name) == (20, "doubling+doubling")
    assert joined.example(13) == Doubling().example(3)
    assert joined.grade(13, "6").is_correct
    assert not joined.grade(13, "26").is_correct
    with pytest.raises(IndexError):
        joined.example(20)


class Short(Doubling):
    name = "short"

    def __len__(self) -> int:
        return 2


def test_tasks_are_taken_in_turn_until_each_is_used_up() -> None:
    asked = JoinedTask([Doubling(), Short()]).in_turn()

    questions = [asked.example(i).messages[0]["content"] for i in range(len(asked))]
    assert questions[:5] == ["2 * 0?", "2 * 0?", "2 * 1?", "2 * 1?", "2 * 2?"]
    assert len(questions) == 12
    assert questions[-1] == "2 * 9?"
    assert own_answers_right(asked) == 12
