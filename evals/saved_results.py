"""Results kept beside the weights: one file per task as it ends, and a report of all of them.

    <stage>/evals/step_000360/hellaswag-1a2b3c4d.json     one task, asked and measured in one way
                              report-5e6f7a8b.json        all tasks that were measured in one way
                              core-5e6f7a8b.csv           CORE as nanochat writes it

A file per task, so that evaluations that run at the same time do not overwrite each other.
"""

import hashlib
import json
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

    @property
    def key(self) -> str:
        """What tells ways of measuring apart in names of files."""
        return short_hash(self.settings)

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
        """Read all results of these weights that were measured in this way."""
        found = []
        for name in list_folder(self.fs, self.path):
            if not name.endswith(".json") or name.startswith("report-"):
                continue
            saved = read_json(self.fs, f"{self.path}/{name}") or {}
            if saved.get("weights") == self.weights and saved.get("settings") == self.settings:
                found.append(TaskResult.from_json(saved["task"]))
        return found

    def write_report(self, newest: list[TaskResult]) -> EvalReport:
        """Put all results into a report, and keep it; the newest count before those from files."""
        tasks = {task.name: task for task in [*self.results(), *newest]}
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
        write_json(self.fs, f"{self.path}/report-{self.key}.json", report.to_json())
        table = report.core_csv()
        if table is not None:
            write_file(self.fs, f"{self.path}/core-{self.key}.csv", table.encode())
        return report


def read_reports(folder: StageFolder) -> list[EvalReport]:
    """Read all reports of a stage, by step."""
    reports = []
    for step in list_folder(folder.fs, folder.path("evals")):
        place = folder.path("evals", step)
        for name in list_folder(folder.fs, place):
            if name.startswith("report-") and name.endswith(".json"):
                saved = read_json(folder.fs, f"{place}/{name}")
                reports += [EvalReport.from_json(saved)] if saved else []
    return sorted(reports, key=lambda report: report.step or 0)


def short_hash(value: object) -> str:
    """Hash JSON to eight hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
