"""What a model can be taught with, by the names on the command line."""

from collections.abc import Callable
from typing import Literal, cast

from evals import TaskSettings
from evals.arc import ARC
from evals.arithmetic import Arithmetic
from evals.exam_plan import located, located_words
from evals.facts import Facts
from evals.gsm8k import GSM8K
from evals.identity import Identity
from evals.mmlu import MMLU
from evals.quick import MOST_QUESTIONS, QuickAnswers
from evals.smoltalk import SmolTalk
from evals.spelling import SimpleSpelling, SpellingBee
from evals.words import load_words
from nanoray.config import InputError
from nanoray.stages.finetune import SPLITS, read_sources
from nanoray.stages.finetune_config import COURSES, FinetuneConfig, with_mixture
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.rl_config import RLConfig
from nanoray.task import Lessons, Task

Split = Literal["train", "test"]

MakeLessons = Callable[[TaskSettings, Split, int | None], Lessons]
"""Makes the lessons of a split. The number of them is for those that are made up, None being their
own; what is read from data is given whole, for the caller to cut."""

DEFAULT_SIZES: dict[str, dict[Split, int]] = {
    "identity": {"train": 1000, "test": 256},
    "simplespelling": {"train": 200_000, "test": 256},
    "spellingbee": {"train": 80_000, "test": 256},
    "arithmetic": {"train": 20_000, "test": 256},
    "quickspelling": {"train": 1000, "test": 256},
    "quickarithmetic": {"train": 1000, "test": 256},
}
"""Of what is made up; spelling as in nanochat at d34. `Facts` counts its own."""


def size_of(name: str, split: Split, size: int | None) -> int:
    """Give the size that is asked for, or the source's own."""
    return DEFAULT_SIZES[name][split] if size is None else size


SOURCES: dict[str, MakeLessons] = {
    "smoltalk": lambda settings, split, _: SmolTalk(split, settings.hub_dir),
    "mmlu": lambda settings, split, _: MMLU(
        "auxiliary_train" if split == "train" else "test", settings.hub_dir
    ),
    "arc-easy": lambda settings, split, _: ARC("ARC-Easy", split, settings.hub_dir),
    "arc-challenge": lambda settings, split, _: ARC("ARC-Challenge", split, settings.hub_dir),
    "gsm8k": lambda settings, split, _: GSM8K(split, settings.hub_dir),
    "identity": lambda settings, split, size: Identity(
        split, settings.identity_file, size=size_of("identity", split, size)
    ),
    "simplespelling": lambda settings, split, size: SimpleSpelling(
        load_words(settings.words), split, size=size_of("simplespelling", split, size)
    ),
    "spellingbee": lambda settings, split, size: SpellingBee(
        load_words(settings.words), split, size=size_of("spellingbee", split, size)
    ),
    "arithmetic": lambda settings, split, size: Arithmetic(
        split, size=size_of("arithmetic", split, size)
    ),
    "quickspelling": lambda settings, split, size: QuickAnswers(
        SpellingBee(load_words(settings.words), split, size=MOST_QUESTIONS),
        size=size_of("quickspelling", split, size),
    ),
    "quickarithmetic": lambda settings, split, size: QuickAnswers(
        Arithmetic(split, size=MOST_QUESTIONS), size=size_of("quickarithmetic", split, size)
    ),
    "facts": lambda settings, split, size: Facts(split, size=size),
}
"""Each reads its data when it is made."""


def lessons_of(
    config: FinetuneConfig | RLConfig, name: str, split: Split, size: int | None
) -> Lessons:
    """Make the lessons of a source for a stage.

    Raises:
        InputError: no such source, or data that are not there.
    """
    if name not in SOURCES:
        raise InputError(
            f"--mixture has {name!r}, and there is no such source. There are "
            f"{', '.join(SOURCES)}, and data for the files of --data."
        )
    settings = TaskSettings(
        hub_dir=located(config.hub_dir),
        words=located_words(config.words),
        identity_file=located(config.identity_file),
    )
    return SOURCES[name](settings, split, size)


GRADED = ("gsm8k", "spellingbee", "simplespelling", "arithmetic")
"""Sources whose answers are written freely, and right in one way alone. Those about facts and
identity are right if they hold the right words: an answer with all words would be rewarded."""


def task_of(config: RLConfig, name: str, split: Split) -> Task:
    """Make a task to be rewarded for.

    Raises:
        InputError: no such task, or data that are not there.
    """
    if name not in GRADED:
        raise InputError(
            f"--tasks has {name!r}, and no such task gives rewards. There are {', '.join(GRADED)}."
        )
    size = config.task_size if split == "train" else None
    lessons = lessons_of(config, name, split, size)
    assert hasattr(lessons, "grade"), "the graded sources are tasks"
    return cast("Task", lessons)


def check_sources(stage: str, config: PretrainConfig | FinetuneConfig | RLConfig) -> None:
    """Read the sources of a stage of a pipeline before any of its stages runs.

    Raises:
        InputError: no such source, or data that are not there.
    """
    if isinstance(config, FinetuneConfig):
        read_sources(with_mixture(config, COURSES[stage]), lessons_of)
    if isinstance(config, RLConfig):
        for name in config.tasks.split(","):
            for split in SPLITS:
                task_of(config, name.strip(), split)
