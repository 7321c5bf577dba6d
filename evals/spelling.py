"""Spelling: how often a letter occurs in a word, and which letters a word has.

A model sees tokens, not letters, and must learn what is in them. The examples are made up from a
list of words; one example depends on its index alone.
"""

import random
import string
from collections.abc import Sequence
from typing import Literal

from evals.gsm8k import Part, grade_number
from evals.words import OTHER_WAY, is_test_word
from nanoray.config import InputError
from nanoray.task import Example, Grade

Split = Literal["train", "test"]
SplitRule = Literal["by_word", "nanochat"]

FIRST_TEST_SEED = 10_000_000
"""Above the index of any training example. (nanochat, since e72c329)"""
SHUFFLE_SEED = 42

OWN_LETTER_CHANCE = 0.9
"""That a letter is asked for which the word has; else it is any of the alphabet."""
LOWER_CASE_CHANCE = 0.3
QUESTION_MARK_CHANCE = 0.5
QUOTES = ("", "'", '"')

TEMPLATES = (
    # English
    "How many {letter}s can you find in {word}",
    "How often does {letter} occur in {word}",
    "Count the number of {letter} in {word}",
    "What number of {letter} does {word} have",
    "Tell me how many {letter} there are in {word}",
    "Please count {letter} in {word}",
    "Go through {word} and count every {letter}",
    "I want to know how many {letter} {word} contains",
    "{word} is written with how many {letter}",
    "Say how often {word} has the letter {letter}",
    "Find the count of {letter} in {word}",
    "When you spell {word}, how many {letter} do you write",
    "How many of the letters of {word} are {letter}",
    "Number of {letter} in {word}",
    "Check {word} for {letter} and give me the total",
    "Do you know how many {letter} are part of {word}",
    "How many times is {letter} in {word}",
    "Which number of times will I see {letter} in {word}",
    "Look at {word}. How many letters are {letter}",
    "Add up all the {letter} in {word}",
    "Spelling question: how many {letter} has {word}",
    "For the word {word}, give the frequency of {letter}",
    "If I cross out each {letter} in {word}, how many do I cross out",
    "In {word}, count the {letter}",
    "How frequent is {letter} within {word}",
    "The letter {letter}: how many are there in {word}",
    "Work out how many {letter} make up {word}",
    "Could you tally {letter} in {word} for me",
    "Of {letter}, how many does the spelling of {word} use",
    "Total {letter} count for {word}",
    # Spanish
    "¿Cuántas {letter} tiene {word}",
    "Cuenta cuántas veces sale {letter} en {word}",
    "Dime el número de {letter} en {word}",
    "En {word}, ¿cuántas veces se escribe {letter}",
    # Chinese
    "{word}里有几个{letter}",
    "请数一数{word}中{letter}的个数",
    "字母{letter}在{word}里出现多少次",
    "单词{word}一共有多少个字母{letter}",
    # Korean
    "{word}에는 {letter}가 몇 개 있나요",
    "{word}에서 {letter}의 개수를 세어 주세요",
    "{letter}는 {word}에 몇 번 나와요",
    "단어 {word}에 들어 있는 {letter}의 수를 알려 줘",
    # French
    "Combien de {letter} y a-t-il dans {word}",
    "Compte les {letter} du mot {word}",
    "Combien de fois trouve-t-on {letter} dans {word}",
    # German
    "Wie viele {letter} hat das Wort {word}",
    "Zähle bitte, wie oft {letter} in {word} steht",
    "Wie oft kommt {letter} in {word} vor",
    # Japanese
    "{word}には{letter}がいくつありますか",
    "{word}の中の{letter}を数えてください",
    "{letter}は{word}に何回出てきますか",
)
"""51 ways to ask, as many in each language as nanochat has; most of the words are our own."""


class WordDraws:
    """The words and seeds of one split.

    By the rule "by_word", no word of a test is ever seen in training: which words are for tests is
    decided by the word alone (`is_test_word`). By the rule "nanochat", both splits draw from all
    words, with the seeds of nanochat at d34: its test example i is its training example i + 1,
    because Python's `Random(-n)` is `Random(n)`, so tests are contaminated. It is there to repeat
    nanochat's numbers.
    """

    def __init__(self, words: Sequence[str], split: Split, rule: SplitRule) -> None:
        self.split, self.rule = split, rule
        if rule == "by_word":
            words = [word for word in words if is_test_word(word) == (split == "test")]
        self.words = list(words)
        if not self.words:
            raise InputError(
                f"The list of words has none for the {split} split: one word in ten is for tests, "
                f"and the others are for training. Use a longer list. {OTHER_WAY}"
            )

    def generator(self, index: int) -> random.Random:
        """Give the random numbers of one example."""
        if self.split == "train":
            return random.Random(index)
        return random.Random(-(index + 1) if self.rule == "nanochat" else FIRST_TEST_SEED + index)


class SpellingBee:
    """Questions such as: how many r are in strawberry?

    The answer counts letter by letter, checks the count with a tool, and ends in `#### count`.
    `split_rule` is told of at `WordDraws`.
    """

    name: str = "SpellingBee"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(
        self,
        words: Sequence[str],
        split: Split,
        *,
        size: int = 256,
        split_rule: SplitRule = "by_word",
    ) -> None:
        self.draws, self.size = WordDraws(words, split, split_rule), size

    def __len__(self) -> int:
        """Give the number of questions."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one question; the answer is in parts."""
        question, word, letter = self.draw(index)
        messages = (
            {"role": "user", "content": question},
            {"role": "assistant", "content": counting_parts(word, letter)},
        )
        return Example(messages)

    def grade(self, index: int, answer: str) -> Grade:
        """Compare the final number of an answer with the count."""
        _, word, letter = self.draw(index)
        return grade_number(answer, str(word.count(letter)))

    def draw(self, index: int) -> tuple[str, str, str]:
        """Draw question, word and letter, in the order in which nanochat draws them."""
        check_index(index, self.size)
        rng = self.draws.generator(index)
        word = rng.choice(self.draws.words)
        own = rng.random() < OWN_LETTER_CHANCE
        letter = rng.choice(word if own else string.ascii_lowercase)
        template = rng.choice(TEMPLATES)
        if rng.random() < LOWER_CASE_CHANCE:
            template = template.lower()
        letter_quote, word_quote = rng.choice(QUOTES), rng.choice(QUOTES)
        question = template.format(
            letter=f"{letter_quote}{letter}{letter_quote}", word=f"{word_quote}{word}{word_quote}"
        )
        if rng.random() < QUESTION_MARK_CHANCE:
            question += "?"
        return question, word, letter


class SimpleSpelling:
    """Words to be spelled; exercises without which the letters of SpellingBee are guessed.

    `split_rule` is told of at `WordDraws`.
    """

    name: str = "SimpleSpelling"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(
        self,
        words: Sequence[str],
        split: Split,
        *,
        size: int = 256,
        split_rule: SplitRule = "by_word",
    ) -> None:
        self.draws, self.size = WordDraws(words, split, split_rule), size
        # So that the same index asks for another word than in SpellingBee. (nanochat)
        random.Random(SHUFFLE_SEED).shuffle(self.draws.words)

    def __len__(self) -> int:
        """Give the number of words to spell."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one exercise."""
        word = self.draw(index)
        messages = (
            {"role": "user", "content": f"Spell the word: {word}"},
            {"role": "assistant", "content": spelled(word)},
        )
        return Example(messages)

    def grade(self, index: int, answer: str) -> Grade:
        """Compare an answer with the spelling, whole."""
        return Grade(answer.strip() == spelled(self.draw(index)))

    def draw(self, index: int) -> str:
        """Draw the word."""
        check_index(index, self.size)
        return self.draws.generator(index).choice(self.draws.words)


def check_index(index: int, size: int) -> None:
    """End iteration where a list would, since words can be drawn for ever."""
    if not 0 <= index < size:
        raise IndexError(f"example {index} of {size}")


def spelled(word: str) -> str:
    """Write a word and its letters, as in "cat:c,a,t"."""
    return f"{word}:{','.join(word)}"


def counting_parts(word: str, letter: str) -> list[Part]:
    """Write how the count is found: letter by letter, then with the tool, as in nanochat."""
    count, lines = 0, []
    for position, char in enumerate(word, start=1):
        count += char == letter
        hit = f" hit! count={count}" if char == letter else ""
        lines.append(f"{position}:{char}{hit}")
    by_hand = (
        f"I am asked how many times the letter '{letter}' stands in the word '{word}'. "
        "First I spell the word and go through it by hand.\n\n"
        f"{spelled(word)}\n\n" + "\n".join(lines) + f"\n\nBy hand I count {count}."
    )
    check = "\n\nNow I make sure of it with Python:\n\n"
    result = f"\n\nPython counts {count}, and this is my final answer:\n\n#### {count}"
    return [
        {"type": "text", "text": by_hand},
        {"type": "text", "text": check},
        {"type": "python", "text": f"'{word}'.count('{letter}')"},
        {"type": "python_output", "text": str(count)},
        {"type": "text", "text": result},
    ]
