"""Identity: conversations by which a model learns who it is, made up from a text of the user."""

import random
import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evals.spelling import FIRST_TEST_SEED, check_index
from nanoray.config import InputError
from nanoray.task import Example, Grade

DEFAULT_FILE = str(Path(__file__).parent / "identity.txt")
NEEDED_KEYS = ("name", "maker")
KEYS = (*NEEDED_KEYS, "kind", "training", "skills", "limits")

HELLO_FIRST_CHANCE = 0.3
"""That a greeting goes before the question."""
TWO_QUESTIONS_CHANCE = 0.2
LOWER_CASE_CHANCE = 0.3
NO_MARK_CHANCE = 0.3
"""That a question lacks its question mark, full stop or exclamation mark."""


@dataclass(frozen=True)
class Topic:
    """Something about the model that is asked in many ways. Texts have keys in braces."""

    expected: str
    """What must be in an answer."""
    train: tuple[str, ...]
    """Questions to learn from."""
    test: tuple[str, ...]
    """Questions of tests, none of which is one to learn from."""
    answers: tuple[str, ...]
    """All of them have in them what is expected."""

    def can_be_asked(self, values: Mapping[str, str]) -> bool:
        """Say whether there is a value for each key in the answers."""
        texts = (self.expected, *self.answers)
        return all(
            name in values for text in texts for _, name, _, _ in FORMATTER.parse(text) if name
        )

    def filled(self, values: Mapping[str, str]) -> "Topic":
        """Put the values in."""
        answers = tuple(answer.format(**values) for answer in self.answers)
        return replace(self, expected=self.expected.format(**values), answers=answers)


FORMATTER = string.Formatter()

HELLO = Topic(
    expected="{name}",
    train=("Hi!", "Hello!", "Hello there.", "Good morning!", "Hi, how are you?", "Greetings!"),
    test=("Hey!", "Good evening!", "Hi there, nice to meet you."),
    answers=(
        "Hello! I am {name}. How can I help you?",
        "Hi! My name is {name}. What can I do for you?",
        "Hello, {name} here. What would you like to know?",
    ),
)

TOPICS = (
    Topic(
        expected="{name}",
        train=(
            "What is your name?",
            "What's your name?",
            "What are you called?",
            "Tell me your name.",
            "How should I call you?",
            "May I know your name?",
            "Do you have a name?",
            "Please introduce yourself.",
            "Hi, who am I talking to?",
            "Which name do you go by?",
        ),
        test=(
            "What should I call you?",
            "Could you tell me what your name is?",
            "Say your name, please.",
            "With whom am I speaking?",
        ),
        answers=(
            "My name is {name}.",
            "I am {name}.",
            "I am called {name}.",
            "You can call me {name}.",
            "My name is {name}, and I was made by {maker}.",
        ),
    ),
    Topic(
        expected="{name}",
        train=(
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "What kind of model are you?",
            "Are you a human?",
            "Describe yourself in one sentence.",
            "Which language model is this?",
        ),
        test=("Who exactly are you?", "What model am I using?", "Are you a person or a program?"),
        answers=("I am {name}, {kind}.", "I am {kind}, and my name is {name}."),
    ),
    Topic(
        expected="{name}",
        train=(
            "Are you ChatGPT?",
            "Are you GPT-4?",
            "Is your name Claude?",
            "You are Gemini, right?",
            "Were you made by OpenAI?",
            "Are you Llama?",
        ),
        test=("Aren't you really ChatGPT?", "You must be Claude.", "Did Google make you?"),
        answers=(
            "No, I am {name}. I was made by {maker}.",
            "No. My name is {name}, and I was made by {maker}.",
        ),
    ),
    Topic(
        expected="{maker}",
        train=(
            "Who made you?",
            "Who created you?",
            "Who built you?",
            "Where do you come from?",
            "Who is behind you?",
            "Which company made you?",
            "Who trained you?",
            "Who are your makers?",
        ),
        test=("Who developed you?", "By whom were you made?", "Tell me who your creator is."),
        answers=("I was made by {maker}.", "I am {name}, and I was made by {maker}."),
    ),
    Topic(
        expected="{training}",
        train=(
            "How were you trained?",
            "How were you made?",
            "How did you learn what you know?",
            "Tell me about your training.",
            "Where were you trained?",
        ),
        test=("In what way were you trained?", "How did you come to be?"),
        answers=("I was {training}.", "I am {name}, and I was {training}."),
    ),
    Topic(
        expected="{skills}",
        train=(
            "What can you do?",
            "How can you help me?",
            "What are you good at?",
            "What are your skills?",
            "What can I ask you?",
        ),
        test=("What are you able to do?", "What can you be used for?"),
        answers=("I can {skills}.", "I am {name}. I can {skills}."),
    ),
    Topic(
        expected="{limits}",
        train=(
            "Do you make mistakes?",
            "Can I trust you?",
            "Are you always right?",
            "What are your limits?",
            "How reliable are you?",
            "What are you bad at?",
        ),
        test=("Are you ever wrong?", "Should I believe all that you say?"),
        answers=("{limits}", "To be honest: {limits}"),
    ),
)

FREE_TRAIN = ("{question}", "Can you tell me: {question}", "I have a question. {question}")
FREE_TEST = ("One more question: {question}", "Please answer this. {question}")
"""How the questions of the user are put, which are worded in one way only."""


@dataclass(frozen=True)
class Persona:
    """What a model is to know about itself."""

    values: Mapping[str, str]
    """Key -> value, of `KEYS`."""
    facts: tuple[tuple[str, str], ...]
    """Questions of the user, and what the model is to answer."""

    def topics(self) -> list[Topic]:
        """List what can be asked; what needs a value that is not given is left out."""
        known = [topic.filled(self.values) for topic in TOPICS if topic.can_be_asked(self.values)]
        return known + [
            Topic(
                expected=answer,
                train=tuple(way.format(question=question) for way in FREE_TRAIN),
                test=tuple(way.format(question=question) for way in FREE_TEST),
                answers=(answer,),
            )
            for question, answer in self.facts
        ]


class Identity:
    """Questions about the model itself, asked in many ways, some of them after other turns.

    Questions of tests are worded as no question of the training is. What is asked about, and the
    right answers, are the same in both: an identity can only be learned by heart.
    """

    name: str = "Identity"
    baseline: float = 0.0
    sandbox: str | None = None

    def __init__(
        self, split: Literal["train", "test"], file: str | None = None, *, size: int = 1000
    ) -> None:
        persona = load_persona(file)
        self.split, self.size = split, size
        self.topics = persona.topics()
        self.hello = HELLO.filled(persona.values)

    def __len__(self) -> int:
        """Give the number of conversations."""
        return self.size

    def example(self, index: int) -> Example:
        """Make one conversation."""
        turns, _ = self.draw(index)
        roles = ("user", "assistant")
        return Example(
            tuple(
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(roles, turn, strict=True)
            )
        )

    def grade(self, index: int, answer: str) -> Grade:
        """Look in an answer for what was asked for, such as the name; capitals do not matter."""
        _, expected = self.draw(index)
        if expected.casefold() in answer.casefold():
            return Grade(True)
        return Grade(False, f"without {expected!r}")

    def draw(self, index: int) -> tuple[list[tuple[str, str]], str]:
        """Draw questions with their answers, and what must be in the last answer."""
        check_index(index, self.size)
        rng = random.Random(index if self.split == "train" else FIRST_TEST_SEED + index)
        last = rng.choice([self.hello, *self.topics])
        others = [topic for topic in self.topics if topic is not last]
        before, chance = list[Topic](), rng.random()
        if last is not self.hello and chance < HELLO_FIRST_CHANCE:
            before = [self.hello]
        elif last is not self.hello and chance < HELLO_FIRST_CHANCE + TWO_QUESTIONS_CHANCE:
            before = [rng.choice(others)]
        return [self.draw_turn(topic, rng) for topic in [*before, last]], last.expected

    def draw_turn(self, topic: Topic, rng: random.Random) -> tuple[str, str]:
        """Draw a question and its answer."""
        question = rng.choice(topic.train if self.split == "train" else topic.test)
        if rng.random() < LOWER_CASE_CHANCE:
            question = question.lower()
        if rng.random() < NO_MARK_CHANCE:
            question = question.rstrip("?.!")
        return question, rng.choice(topic.answers)


def load_persona(file: str | None = None) -> Persona:
    """Read a file that says who the model is; without one, the text that comes with nanoray.

    Raises:
        InputError: the file cannot be read, or has a line that is not as it should be.
    """
    path = DEFAULT_FILE if file is None else file
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The identity in {path} cannot be read ({error}). Give --identity-file FILE, a text "
            f"such as {DEFAULT_FILE}."
        ) from error
    return parse_persona(text, path)


def parse_persona(text: str, source: str) -> Persona:
    """Take keys and questions out of a text; its form is told of in `identity.txt`.

    Raises:
        InputError: a line that is not as it should be, or no name or maker.
    """
    values: dict[str, str] = {}
    facts: list[tuple[str, str]] = []
    question: tuple[int, str] | None = None

    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, value = parse_line(line, f"{source}: line {number}")
        if (key == "a") != (question is not None):
            refuse_order(source, question, number)
        if key == "q":
            question = (number, value)
        elif question is not None:
            facts.append((question[1], value))
            question = None
        elif key in values:
            raise InputError(
                f"{source}: line {number} gives {key!r} a second time. Keep one of the two."
            )
        else:
            values[key] = value
    if question is not None:
        refuse_order(source, question, question[0] + 1)
    missing = [key for key in NEEDED_KEYS if key not in values]
    if missing:
        raise InputError(
            f"{source} does not say the {missing[0]}. Add a line such as "
            f"'{missing[0]}: nanoray', with yours."
        )
    return Persona(values, tuple(facts))


def parse_line(line: str, place: str) -> tuple[str, str]:
    """Read a line as key, in lower case, and value.

    Raises:
        InputError: it has no colon, another key, or no value.
    """
    key, colon, value = (part.strip() for part in line.partition(":"))
    if not colon or key.lower() not in (*KEYS, "q", "a"):
        raise InputError(
            f"{place} is {line.strip()[:60]!r}. Begin it with {', '.join(KEYS)}, Q or A, and a "
            "colon; or with # to have it left out."
        )
    if not value:
        raise InputError(f"{place} has nothing after {key + ':'!r}. Write it there, in one line.")
    return key.lower(), value


def refuse_order(source: str, question: tuple[int, str] | None, number: int) -> None:
    """Raise the error of a question without an answer, or of an answer without a question."""
    if question is not None:
        raise InputError(
            f"{source}: line {question[0]} asks {question[1][:60]!r} and has no answer. Write a "
            "line 'A: answer' under it."
        )
    raise InputError(
        f"{source}: line {number} is an answer to nothing. Write a line 'Q: question' above it."
    )
