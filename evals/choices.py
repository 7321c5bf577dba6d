"""Questions with lettered choices: how they are put to a model, and how a letter is graded."""

from collections.abc import Sequence

from nanoray.config import DataError
from nanoray.task import Example, Grade


def question_text(question: str, letters: Sequence[str], texts: Sequence[str]) -> str:
    """Write a question with its choices.

    A letter comes after its choice and with nothing before it but "=", so that its token is the
    one with which an answer begins: " A" would be another. (Wire format: nanochat.)
    """
    choices = "".join(f"- {text}={letter}\n" for letter, text in zip(letters, texts, strict=True))
    return (
        f"Multiple Choice question: {question}\n{choices}\n"
        "Respond only with the letter of the correct answer."
    )


def choice_example(
    question: str, letters: Sequence[str], texts: Sequence[str], answer: str
) -> Example:
    """Make an example whose answer is one bare letter.

    Raises:
        DataError: the answer is none of the letters, or a choice has no letter.
    """
    if answer not in letters or len(letters) != len(texts):
        raise DataError(
            f"The question {question!r} has the answer {answer!r} and the letters "
            f"{', '.join(letters)} for {len(texts)} choices. Give a --hub-dir without it."
        )
    messages = (
        {"role": "user", "content": question_text(question, letters, texts)},
        {"role": "assistant", "content": answer},
    )
    return Example(messages, choices=tuple(letters))


def grade_letter(example: Example, answer: str) -> Grade:
    """Compare a letter with the one that is right."""
    assert answer in example.choices, f"{answer!r} is none of the choices {example.choices}"
    expected = example.messages[-1]["content"]
    return Grade(answer == expected)
