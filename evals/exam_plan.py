"""Which questions an evaluation asks, by the names that the user gives."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evals import CHAT_TASKS, HUB_TASKS, TASKS, TaskSettings
from evals.bundle import PUBLISHED_TASKS, Bundle, CoreTask, open_bundle
from evals.core import FEW_SHOT_SEED, SHUFFLE_SEED, CoreExam
from evals.exam import Exam, exam_of
from evals.hub import SHUFFLE_SEED as HUB_SEED
from nanoray.cluster import connection
from nanoray.config import DataError, InputError, require_positive
from nanoray.data.datasets import EMBEDDED_WORDS
from nanoray.inference.sandbox import LevelChoice
from nanoray.task import Task


@dataclass(frozen=True, kw_only=True)
class ExamConfig:
    """What is asked."""

    tasks: str = "core"
    """core, chat, or names of tasks (hellaswag, gsm8k, ...), with commas between them."""
    eval_bundle: str | None = None
    """Folder or zip file with CORE's tasks; by default the published one is fetched."""
    hub_dir: str | None = None
    """Folder that stands for the Hugging Face hub: ORG/NAME/CONFIG/SPLIT.parquet."""
    words: str | None = None
    """List of words for spelling, or embedded; by default the public one is fetched."""
    identity_file: str | None = None
    """Text that says who the model is, for the task identity; by default the one of nanoray."""
    max_per_task: int | None = None
    """Ask so many questions of each task at most: a sample, and called so."""
    skip_missing: bool = False
    """Score what there is of a bundle that lacks files; it is not CORE then."""
    sandbox: LevelChoice = "auto"
    """Isolation of programs that the model writes: strong refuses to do with less."""

    def __post_init__(self) -> None:
        require_positive("max_per_task", self.max_per_task)


@dataclass(frozen=True)
class ExamPlan:
    """What is asked."""

    exams: list[Exam]
    available: dict[str, int]
    """Examples that each task has in all."""
    suites: dict[str, tuple[str, ...]]
    """Group -> all its tasks, of which CORE and ChatCORE are the means."""
    settings: dict[str, Any]  # Any: JSON
    """Samples and seeds."""
    sources: dict[str, str]
    """Where the questions of tasks come from: a bundle's hash, the hub or a folder. A task that is
    not named needs no source."""

    @property
    def names(self) -> list[str]:
        """Names of the exams."""
        return [exam.name for exam in self.exams]


def plan_exams(config: ExamConfig) -> ExamPlan:
    """Read all questions.

    Raises:
        InputError: an unknown task, or data that are not there.
    """
    wanted = {name.strip().lower() for name in config.tasks.split(",") if name.strip()}
    bundle, tasks = None, list[CoreTask]()
    # A typo is told before 160 MB are fetched.
    if config.eval_bundle is None:
        check_names(config.tasks, wanted, PUBLISHED_TASKS)
    if wanted - {"chat", *TASKS}:
        bundle = open_bundle(located(config.eval_bundle))
        tasks = bundle.tasks()
    labels = [task.label for task in tasks]
    check_names(config.tasks, wanted, labels)
    picked = [task for task in tasks if wanted & {"core", task.label.lower()}]
    exams, available, sources = list[Exam](), dict[str, int](), dict[str, str]()
    of_bundle = f"bundle {bundle.fingerprint()}" if bundle else ""
    for task in picked:
        assert bundle is not None, "it has these tasks"
        exam, total = core_exam(bundle, task, config.max_per_task)
        if exam is None and not config.skip_missing:
            raise DataError(
                f"{bundle.address} has no {task.file}, which {task.label} needs. Fetch the bundle "
                "anew, or score the rest with --skip-missing."
            )
        exams += [exam] if exam else []
        available[task.label], sources[task.label] = total, of_bundle
    for written in written_tasks(config, wanted):
        exams.append(exam_of(written, config.max_per_task))
        available[written.name] = len(written)
        if written.name in HUB_TASKS:
            sources[written.name] = located(config.hub_dir) or "hub"
    if not exams:
        raise InputError(f"Of --tasks {config.tasks} none is there. Give another --eval-bundle.")
    return ExamPlan(
        exams=exams,
        available=available,
        suites={"core": tuple(labels), "chat": CHAT_TASKS},
        settings={
            "max_per_task": config.max_per_task,
            "seeds": {"core": SHUFFLE_SEED, "few_shot": FEW_SHOT_SEED, "hub": HUB_SEED},
        },
        sources=sources,
    )


def check_names(given: str, wanted: set[str], labels: Sequence[str]) -> None:
    """Raise an InputError unless all tasks that are wanted are known; `labels` are CORE's."""
    unknown = sorted(wanted - {"core", "chat", *map(str.lower, labels), *TASKS})
    if unknown or not wanted:
        raise InputError(
            f"--tasks {given!r}: {unknown[0] if unknown else 'nothing'} is no task. There "
            f"are core, chat, {', '.join([*labels, *TASKS])}."
        )


def written_tasks(config: ExamConfig, wanted: set[str]) -> list[Task]:
    """Make the tasks of conversations that are wanted: all of ChatCORE for "chat"."""
    if "chat" in wanted:
        wanted = wanted | {name.lower() for name in CHAT_TASKS}
    settings = TaskSettings(
        hub_dir=located(config.hub_dir),
        words=located_words(config.words),
        identity_file=located(config.identity_file),
        sandbox=config.sandbox,
    )
    return [make(settings) for name, make in TASKS.items() if name in wanted]


def core_exam(
    bundle: Bundle, task: CoreTask, max_per_task: int | None
) -> tuple[CoreExam | None, int]:
    """Read one task of CORE, shuffled as nanochat does it; gives also how many examples it has."""
    items = bundle.examples(task)
    if items is None:
        return None, 0
    random.Random(SHUFFLE_SEED).shuffle(items)
    return CoreExam(task, items[:max_per_task]), len(items)


def located(path: str | None) -> str | None:
    """Make a path absolute, as it is meant where the job was submitted."""
    return path and connection.absolute_address(path)


def located_words(words: str | None) -> str | None:
    """Make the path of a list of words absolute, unless they are the embedded ones."""
    return words if words == EMBEDDED_WORDS else located(words)
