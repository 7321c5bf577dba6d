"""Benchmarks of trained models, and how their answers are graded."""

from collections.abc import Callable
from dataclasses import dataclass

from evals.arc import ARC
from evals.arithmetic import Arithmetic
from evals.facts import Facts
from evals.gsm8k import GSM8K
from evals.humaneval import HumanEval
from evals.identity import Identity
from evals.mmlu import MMLU
from evals.spelling import SimpleSpelling, SpellingBee
from evals.words import load_words
from nanoray.inference.sandbox import LevelChoice
from nanoray.task import Task


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Where the questions come from, and how answers that are programs are run."""

    hub_dir: str | None = None
    """Folder that stands for the Hugging Face hub; see `evals.hub`."""
    words: str | None = None
    """File with a list of words, or "embedded"; by default the public one."""
    identity_file: str | None = None
    """File that says who the model is; by default the text that comes with nanoray."""
    sandbox: LevelChoice = "auto"
    """Level of the sandbox of HumanEval."""


TASKS: dict[str, Callable[[TaskSettings], Task]] = {
    "arc-easy": lambda settings: ARC("ARC-Easy", "test", settings.hub_dir),
    "arc-challenge": lambda settings: ARC("ARC-Challenge", "test", settings.hub_dir),
    "mmlu": lambda settings: MMLU("test", settings.hub_dir),
    "gsm8k": lambda settings: GSM8K("test", settings.hub_dir),
    "humaneval": lambda settings: HumanEval(settings.hub_dir, sandbox=settings.sandbox),
    "spellingbee": lambda settings: SpellingBee(load_words(settings.words), "test"),
    "identity": lambda settings: Identity("test", settings.identity_file, size=256),
    "simplespelling": lambda settings: SimpleSpelling(load_words(settings.words), "test"),
    "arithmetic": lambda _: Arithmetic("test"),
    "facts": lambda _: Facts("test"),
}
"""The tasks by their names on the command line: the six of ChatCORE in the order in which nanochat
evaluates them, and then our own. Each reads its data when it is made."""

HUB_TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
"""Those whose questions come from the hub, or from the folder that stands for it."""
CHAT_TASKS = (*HUB_TASKS, "SpellingBee")
"""The names of ChatCORE's tasks in tables; in lower case those on the command line."""
