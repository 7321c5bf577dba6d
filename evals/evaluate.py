"""`jobs/evaluate.py`: what is measured, of which model, and where the results go."""

import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.exam_plan import ExamConfig, ExamPlan, plan_exams
from evals.results import EvalReport, TaskResult, compare, count_notes
from evals.run import CheckpointSource, Crew, FolderSource, Marks, Source, choose_crew, take_exams
from nanoray.cluster import connection
from nanoray.config import InputError, require_positive
from nanoray.model.gpt import DTYPES
from nanoray.storage import StageFolder, list_folder, read_json, write_file, write_json
from nanoray.train.checkpoint_files import step_name
from nanoray.train.checkpoint_name import SavedModel, find_model

logger = logging.getLogger(__name__)


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
    batch_size: int = 32
    """Questions that each of them answers at once; no result depends on it."""
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
        if self.step is not None and (self.run is None or "@" in self.run):
            raise InputError(f"--step {self.step} belongs to a --run without @step.")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"--dtype {self.dtype} is unknown. Choose float32 or bfloat16.")
        require_positive("batch_size", self.batch_size)


@dataclass(frozen=True)
class Subject:
    """A model that is measured."""

    name: str
    source: Source
    weights: str
    """SHA-256 of its weights."""
    saved: SavedModel | None = None
    """None for a folder."""


def evaluate(config: EvaluateConfig) -> str:
    """Measure what the user names; gives the table, or JSON.

    Raises:
        InputError: no such checkpoint, bundle or task, or a sandbox that cannot be had.
    """
    storage = connection.absolute_address(config.storage or "runs")
    names = config.compare or (config.hugging_face or full_name(config),)
    connection.connect()
    crew = choose_crew(config.num_actors)
    dtype = config.dtype or ("bfloat16" if crew.gpus_each else "float32")
    subjects = [find_subject(storage, name, dtype) for name in names]
    plan = plan_exams(config)
    reports = [measure(subject, plan, dtype, crew, config.batch_size) for subject in subjects]
    if config.json:
        return json.dumps([report.to_json() for report in reports], indent=1)
    if config.compare:
        return compare(*reports)
    return reports[0].table()


def full_name(config: EvaluateConfig) -> str:
    """Give the checkpoint that --run and --step name together."""
    assert config.run is not None, "checked with the config"
    return config.run if config.step is None else f"{config.run}@{config.step}"


def find_subject(storage: str, name: str, dtype: str) -> Subject:
    """Find a checkpoint of a run, or else a folder with a Hugging Face model.

    Raises:
        InputError: there is neither.
    """
    if Path(name).is_dir() and (Path(name) / "config.json").exists():
        folder = str(Path(name).resolve())
        weights = hashlib.sha256()
        for file in sorted(Path(folder).glob("*.safetensors")):
            with file.open("rb") as content:
                weights.update(hashlib.file_digest(content, "sha256").digest())
        return Subject(folder, FolderSource(folder, dtype), weights.hexdigest())
    saved = find_model(storage, name)
    saved.tokenizer()  # one that does not belong to the weights is found here, not in an actor
    source = CheckpointSource(storage, saved.name, dtype)
    return Subject(saved.name, source, saved.weights_hash(), saved)


def measure(
    subject: Subject, plan: ExamPlan, dtype: str, crew: Crew, batch_size: int
) -> EvalReport:
    """Let a model take all exams, and keep what came out beside its checkpoint.

    What is there already of the same weights and settings is not measured again.
    """
    settings = {**plan.settings, "dtype": dtype}
    earlier = saved_report(subject, settings)
    known = {task.name for task in earlier.tasks} if earlier else set()
    exams = [exam for exam in plan.exams if exam.name not in known]
    report = EvalReport(
        model=subject.name,
        weights=subject.weights,
        step=subject.saved.step if subject.saved else None,
        settings=settings,
        tasks=(),
        left_out=plan.left_out,
        core_tasks=plan.core_tasks,
        chat_tasks=plan.chat_tasks,
    )

    def done(marks: Marks) -> None:
        nonlocal report
        result = result_of(marks, plan, crew)
        report = dataclasses.replace(report, tasks=(*report.tasks, result))
        low, high = result.interval
        logger.info(
            "%s: %.4f (%.4f - %.4f) of %s examples, %.1f per second",
            *(result.name, result.accuracy, low, high),
            *(f"{result.num_examples:,}", result.examples_per_second),
        )
        save_report(subject, merge(earlier, report))

    if exams:
        logger.info("%s: %d tasks by %d actor(s)", subject.name, len(exams), crew.num_actors)
        take_exams(subject.source, exams, crew, batch_size, done)
    return merge(earlier, report).only(plan.names)


def merge(earlier: EvalReport | None, newer: EvalReport) -> EvalReport:
    """Add new results to those of the same weights and settings."""
    return newer if earlier is None else earlier.merged(newer)


def result_of(marks: Marks, plan: ExamPlan, crew: Crew) -> TaskResult:
    """Sum up one exam."""
    grades, name = marks.in_order(), marks.exam.name
    return TaskResult(
        name=name,
        group="chat" if name in plan.chat_tasks else "core",
        baseline=marks.exam.baseline,
        outcomes="".join("1" if grade.is_correct else "0" for grade in grades),
        num_available=plan.available[name],
        notes=count_notes(grade.note for grade in grades),
        seconds=marks.seconds,
        examples_per_second=crew.num_actors * len(grades) / max(1e-9, marks.seconds),
    )


def report_name(step: int, settings: dict[str, Any]) -> str:  # Any: JSON
    """Name the file of a report: what was measured in another way has another name."""
    text = json.dumps(settings, sort_keys=True).encode()
    return f"{step_name(step)}-{hashlib.sha256(text).hexdigest()[:8]}"


def saved_report(subject: Subject, settings: dict[str, Any]) -> EvalReport | None:  # Any: JSON
    """Read what is known of these weights, measured in this way."""
    if subject.saved is None:
        return None
    folder = subject.saved.folder
    name = report_name(subject.saved.step, settings)
    saved = read_json(folder.fs, folder.path("evals", f"{name}.json"))
    report = EvalReport.from_json(saved) if saved else None
    return report if report and report.weights == subject.weights else None


def save_report(subject: Subject, report: EvalReport) -> None:
    """Keep a report beside its checkpoint, and CORE as a table too; of a folder nothing is kept."""
    if subject.saved is None:
        return
    folder = subject.saved.folder
    name = report_name(subject.saved.step, report.settings)
    write_json(folder.fs, folder.path("evals", f"{name}.json"), report.to_json())
    table = report.core_csv()
    if table is not None:
        write_file(folder.fs, folder.path("evals", f"{name}.csv"), table.encode())


def read_reports(folder: StageFolder) -> list[EvalReport]:
    """Read all reports of a stage, by step."""
    reports = []
    for name in list_folder(folder.fs, folder.path("evals")):
        if name.endswith(".json"):
            saved = read_json(folder.fs, folder.path("evals", name.rpartition("/")[2]))
            reports += [EvalReport.from_json(saved)] if saved else []
    return sorted(reports, key=lambda report: report.step or 0)
