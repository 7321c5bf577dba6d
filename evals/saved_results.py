"""Results kept beside the weights: one file per task as it ends, and a report of all of them.

    <stage>/evals/step_000360/hellaswag-1a2b3c4d.json     one task, asked and measured in one way
                              report-5e6f7a8b.json        all tasks that were measured in one way,
                                                          their questions from one source
                              core-5e6f7a8b.csv           CORE as nanochat writes it

A file per task, so that evaluations that run at the same time do not overwrite each other. Two
bundles have tasks of the same names: what was asked from another one stands in another report.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from evals.results import GROUPS, EvalReport, TaskResult
from nanoray.config import FORMAT_VERSION
from nanoray.storage import (
    StageFolder,
    list_folder,
    open_location,
    read_json,
    write_file,
    write_json,
)
from nanoray.train.checkpoint_files import step_name
from nanoray.train.checkpoint_name import SavedModel

Settings = dict[str, Any]  # Any: JSON


@dataclass(frozen=True)
class ResultFolder:
    """The results of one model, measured in one way."""

    fs: AbstractFileSystem
    path: str
    model: str
    weights: str
    step: int | None
    settings: Settings

    @classmethod
    def of_checkpoint(cls, saved: SavedModel, settings: Settings) -> "ResultFolder":
        """Give the folder of a step of a run."""
        folder = saved.folder
        path = folder.path("evals", step_name(saved.step))
        return cls(folder.fs, path, saved.name, saved.weights_hash(), saved.step, settings)

    @classmethod
    def of_folder(
        cls, storage: str, model: str, weights: str, settings: Settings
    ) -> "ResultFolder":
        """Give the folder of a model that belongs to no run: `.evals` in the storage."""
        fs, path = open_location(storage)
        name = f"{model.rstrip('/').rpartition('/')[2]}-{weights[:8]}"
        return cls(fs, f"{path}/.evals/{name}", model, weights, None, settings)

    def key(self, results: Sequence[TaskResult]) -> str:
        """Hash how results were measured, and from which sources they were asked."""
        return short_hash([self.settings, sorted({result.source for result in results})])

    def save(self, result: TaskResult) -> None:
        """Keep the result of a task."""
        facts = {
            "format_version": FORMAT_VERSION,
            "weights": self.weights,
            "settings": self.settings,
            "task": result.to_json(),
        }
        key = short_hash([self.settings, result.questions, result.sandbox])
        write_json(self.fs, f"{self.path}/{result.name}-{key}.json", facts)

    def results(self) -> list[TaskResult]:
        """Read all results of these weights that were measured in this way, the oldest first."""
        found = []
        for name in list_folder(self.fs, self.path):
            if not name.endswith(".json") or name.startswith("report-"):
                continue
            saved = read_json(self.fs, f"{self.path}/{name}") or {}
            if saved.get("weights") == self.weights and saved.get("settings") == self.settings:
                found.append(TaskResult.from_json(saved["task"]))
        return sorted(found, key=lambda result: result.asked_at)

    def write_report(self, newest: list[TaskResult]) -> EvalReport:
        """Put all results that belong together into a report, and keep it.

        The newest of each task counts, and those that are given before all from files.
        """
        tasks = of_one_source([*self.results(), *newest])
        suites = {task.group: task.suite for task in tasks.values()}
        order = [name for group in GROUPS if group in suites for name in suites[group]]
        order += [name for name in tasks if name not in order]
        report = EvalReport(
            model=self.model,
            weights=self.weights,
            step=self.step,
            settings=self.settings,
            tasks=tuple(tasks.values()),
        ).only(order)
        key = self.key(report.tasks)
        write_json(self.fs, f"{self.path}/report-{key}.json", report.to_json())
        table = report.core_csv()
        if table is not None:
            key = self.key(report.of_group("core"))
            write_file(self.fs, f"{self.path}/core-{key}.csv", table.encode())
        return report


def of_one_source(results: Sequence[TaskResult]) -> dict[str, TaskResult]:
    """Choose the newest result of each task, by name.

    Its group's newest result says from which source, and of which suite, all others must be.

    Args:
        results: the oldest first.
    """
    sources, suites = dict[str, str](), dict[str, tuple[str, ...]]()
    chosen = dict[str, TaskResult]()
    for result in reversed(results):
        suite = suites.setdefault(result.group, result.suite)
        # What needs no source, as spelling made of words, stands beside any.
        source = sources.setdefault(result.group, result.source) if result.source else ""
        if result.name not in chosen and (result.source, result.suite) == (source, suite):
            chosen[result.name] = result
    return chosen


def read_reports(folder: StageFolder) -> list[EvalReport]:
    """Read all reports of a stage, by step, and of a step the oldest first."""
    reports = []
    for step in list_folder(folder.fs, folder.path("evals")):
        place = folder.path("evals", step)
        for name in list_folder(folder.fs, place):
            if name.startswith("report-") and name.endswith(".json"):
                saved = read_json(folder.fs, f"{place}/{name}")
                reports += [EvalReport.from_json(saved)] if saved else []
    return sorted(reports, key=lambda report: (report.step or 0, report.asked_at))


def short_hash(value: object) -> str:
    """Hash JSON to eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
