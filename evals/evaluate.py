"""`jobs/evaluate.py`: what is measured, of which model, and where the results go."""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.candidates import NO_TRANSFORMERS
from evals.exam import Exam
from evals.exam_plan import ExamConfig, ExamPlan, located, plan_exams
from evals.results import EvalReport, TaskResult, compare, count_notes
from evals.run import (
    BATCH_SIZE,
    CheckpointSource,
    Crew,
    FolderSource,
    Marks,
    Source,
    choose_crew,
    take_exams,
)
from evals.saved_results import ResultFolder, Settings
from nanoray.cluster import connection
from nanoray.config import InputError, require_checkpoint_name, require_positive
from nanoray.model.gpt import DTYPES
from nanoray.train.checkpoint_name import SavedModel, find_model

logger = logging.getLogger(__name__)

WEIGHT_FILES = "*.safetensors"
"""Of a Hugging Face model; other files of weights are pickles, which can run code."""
SETTING_FILES = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*/*.jinja")
"""Its shape, its tokenizer in all the forms there are, its templates, and its ends of turns."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ExamConfig):
    """Measure a checkpoint, or a Hugging Face model, by the tasks of CORE and ChatCORE."""

    run: str | None = None
    """RUN, RUN/stage or RUN/stage@step."""
    step: int | None = None
    """The checkpoint of the run; by default the newest."""
    hugging_face: str | None = None
    """Folder of a model in Hugging Face's layout, to be measured instead of a run."""
    compare: tuple[str, str] | None = None
    """Two checkpoints, or folders, to be measured where they are not yet, and compared."""
    storage: str | None = None
    """Where runs are kept: a folder or an address; by default ./runs."""
    num_actors: int | None = None
    """Models that answer at once; by default one per GPU, or per CPU up to four."""
    batch_size: int = BATCH_SIZE
    """Questions that each of them answers at once."""
    dtype: str | None = None
    """float32 or bfloat16; by default float32 on CPUs, bfloat16 on GPUs."""
    json: bool = False
    """Print JSON only."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            InputError: nothing to measure, or two things; a value that cannot be used.
        """
        super().__post_init__()
        given = [value for value in (self.run, self.hugging_face, self.compare) if value]
        if len(given) != 1:
            raise InputError("Give one of --run RUN, --hugging-face FOLDER and --compare A B.")
        require_checkpoint_name("--run", self.run)
        if self.step is not None and (self.run is None or "@" in self.run):
            raise InputError(f"--step {self.step} belongs to a --run without @step.")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"--dtype {self.dtype} is unknown. Choose float32 or bfloat16.")
        require_positive("batch_size", self.batch_size)


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    storage: str
    name: str
    """RUN/stage@step, or a folder."""
    weights: str
    """SHA-256 of its weights; of a folder, of all that decides its answers."""
    saved: SavedModel | None = None
    """None for a folder."""

    def source(self, dtype: str) -> Source:
        """Say where actors load it from."""
        if self.saved is None:
            return FolderSource(self.name, dtype)
        return CheckpointSource(self.storage, self.name, dtype)

    def results(self, settings: Settings) -> ResultFolder:
        """Give the place of its results."""
        if self.saved is None:
            settings = {**settings, "transformers": transformers_version()}
            return ResultFolder.of_folder(self.storage, self.name, self.weights, settings)
        return ResultFolder.of_checkpoint(self.saved, settings)


def evaluate(config: EvaluateConfig) -> str:
    """Measure what the user names; gives the table, or JSON.

    Raises:
        InputError: no such checkpoint, bundle or task, or a sandbox that cannot be had.
    """
    subjects = find_subjects(config, connection.absolute_address(config.storage or "runs"))
    plan = plan_exams(config)
    connection.connect()
    crew = choose_crew(config.num_actors)
    dtype = config.dtype or ("bfloat16" if crew.gpus_each else "float32")
    reports = [measure(subject, plan, dtype, crew, config.batch_size) for subject in subjects]
    if config.json:
        return json.dumps([report.to_json() for report in reports], indent=1)
    if config.compare:
        return compare(*reports)
    return reports[0].table()


def find_subjects(config: EvaluateConfig, storage: str) -> list[Subject]:
    """Find what the user names.

    Raises:
        InputError: it is not there.
    """
    if config.hugging_face is not None:
        return [find_folder(storage, config.hugging_face)]
    if config.run is not None:
        at = "" if config.step is None else f"@{config.step}"
        return [find_checkpoint(storage, f"{config.run}{at}")]
    return [
        find_folder(storage, name) if is_model_folder(name) else find_checkpoint(storage, name)
        for name in config.compare or ()
    ]


def is_model_folder(name: str) -> bool:
    """Say whether a name is that of a folder with a Hugging Face model."""
    try:
        saved = json.loads((Path(located(name) or "") / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and "model_type" in saved


def find_folder(storage: str, name: str) -> Subject:
    """Find a Hugging Face model, and hash its weights and all that says how they are used.

    Raises:
        InputError: the folder holds none.
    """
    folder = Path(located(name) or "")
    weights = sorted(folder.glob(WEIGHT_FILES))
    if not is_model_folder(name) or not weights:
        raise InputError(
            f"{folder} holds no Hugging Face model: it needs a config.json and weights "
            f"({WEIGHT_FILES})."
        )
    settings = {file for pattern in SETTING_FILES for file in folder.glob(pattern)}
    whole = hashlib.sha256()
    for file in [*weights, *sorted(settings)]:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        whole.update(f"{file.relative_to(folder)} {digest}\n".encode())
    return Subject(storage, str(folder), whole.hexdigest())


def transformers_version() -> str:
    """Say which version of transformers computes a Hugging Face model.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(NO_TRANSFORMERS) from error


def find_checkpoint(storage: str, name: str) -> Subject:
    """Find and verify a checkpoint of a run.

    Raises:
        InputError: it is not there, or damaged, or its tokenizer is another one.
    """
    saved = find_model(storage, name)
    saved.tokenizer()  # one that does not belong to the weights is found here, not in an actor
    return Subject(storage, saved.name, saved.weights_hash(), saved)


def measure(
    subject: Subject,
    plan: ExamPlan,
    dtype: str,
    crew: Crew,
    batch_size: int = BATCH_SIZE,
    may_go_on: Callable[[], bool] = lambda: True,
) -> EvalReport:
    """Let a model take all exams, and keep what came out beside its weights.

    What is there already of the same weights, questions and settings is not measured again.

    Raises:
        InputError: wrong input that only an actor could see.
        RunFailedError: actors failed.
        DisplacedError: it may not go on.
    """
    folder = subject.results({**plan.settings, "dtype": dtype})
    saved = {(r.name, r.questions, r.sandbox): r for r in folder.results()}
    known, missing = list[TaskResult](), list[Exam]()
    for exam in plan.exams:
        result = saved.get((exam.name, exam.fingerprint, exam.sandbox))
        if result is None:
            missing.append(exam)
        else:
            known.append(asked_again(result, exam, plan))
            folder.save(known[-1])

    def done(marks: Marks) -> None:
        result = result_of(marks, plan)
        known.append(result)
        folder.save(result)
        low, high = result.interval
        logger.info(
            "%s: %.4f (%.4f - %.4f) of %s examples, %.1f per second",
            *(result.name, result.accuracy, low, high),
            *(f"{result.num_examples:,}", result.examples_per_second),
        )

    if missing:
        logger.info("%s: %d tasks by %d actor(s)", subject.name, len(missing), crew.num_actors)
        source = subject.source(dtype)
        take_exams(source, missing, crew, batch_size=batch_size, done=done, may_go_on=may_go_on)
    return folder.write_report(known).only(plan.names)


def asked_again(result: TaskResult, exam: Exam, plan: ExamPlan) -> TaskResult:
    """Give a result that is known as the plan asks for it; what was answered stays."""
    return dataclasses.replace(
        result,
        suite=plan.suites[exam.group],
        source=plan.sources.get(exam.name, ""),
        asked_at=time.time(),
        baseline=exam.baseline,
        num_available=plan.available[exam.name],
    )


def result_of(marks: Marks, plan: ExamPlan) -> TaskResult:
    """Sum up one exam."""
    grades, exam = marks.in_order(), marks.exam
    return TaskResult(
        name=exam.name,
        group=exam.group,
        suite=plan.suites[exam.group],
        questions=exam.fingerprint,
        source=plan.sources.get(exam.name, ""),
        asked_at=time.time(),
        sandbox=exam.sandbox,
        baseline=exam.baseline,
        outcomes="".join("1" if grade.is_correct else "0" for grade in grades),
        num_available=plan.available[exam.name],
        notes=count_notes(grade.note for grade in grades),
        seconds=marks.actor_seconds,
        examples_per_second=len(grades) / max(1e-9, marks.ended - marks.began),
    )
