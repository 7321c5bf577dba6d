"""The CORE bundle: which tasks there are, how each is asked, and its examples.

Layout of the published one: `core.yaml`, `eval_meta_data.csv`, `eval_data/**.jsonl`, in a folder or
a zip file, below `eval_bundle/` or at the top.
"""

import csv
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanoray.config import DataError, InputError
from nanoray.data.cached_file import ZIP, fetch_once

PUBLISHED = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
PUBLISHED_TASKS = (
    *("hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge"),
    *("copa", "commonsense_qa", "piqa", "openbook_qa", "lambada_openai", "hellaswag"),
    *("winograd", "winogrande", "bigbench_dyck_languages", "agi_eval_lsat_ar"),
    *("bigbench_cs_algorithms", "bigbench_operators", "bigbench_repeat_copy_logic", "squad"),
    *("coqa", "boolq", "bigbench_language_identification"),
)
"""Those of the published bundle, in its order."""
KINDS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
"""How a task is asked, and the fields that its examples then have."""


@dataclass(frozen=True)
class CoreTask:
    """One task of the bundle."""

    label: str
    kind: str
    """A key of KINDS."""
    num_shots: int
    """Solved examples before each question."""
    delimiter: str
    """Between a question and its answer."""
    baseline: float
    """Share of right answers that guessing gives."""
    file: str


class Bundle:
    """A bundle that is there; files are read when they are wanted."""

    def __init__(self, address: str, read: Callable[[str], bytes | None]) -> None:
        """Keep where it is, and what reads one of its files (None: it is not there)."""
        self.address, self._read = address, read

    def tasks(self) -> list[CoreTask]:
        """List the tasks, in the order of the bundle.

        Raises:
            DataError: core.yaml or eval_meta_data.csv is missing or cannot be understood.
        """
        try:
            listed = yaml.safe_load(self._must_read("core.yaml"))["icl_tasks"]
            table = csv.DictReader(io.StringIO(self._must_read("eval_meta_data.csv").decode()))
            baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in table}
            tasks = [self._task(entry, baselines) for entry in listed]
        except (KeyError, IndexError, TypeError, ValueError, yaml.YAMLError) as error:
            raise DataError(f"{self.address} is no CORE bundle: {error!r}.") from error
        return tasks

    def _task(self, entry: dict[str, Any], baselines: dict[str, float]) -> CoreTask:  # Any: YAML
        """Read one entry of core.yaml."""
        if entry["icl_task_type"] not in KINDS:
            raise ValueError(f"{entry['label']} is of the unknown kind {entry['icl_task_type']}")
        return CoreTask(
            label=entry["label"],
            kind=entry["icl_task_type"],
            num_shots=entry["num_fewshot"][0],
            delimiter=entry.get("continuation_delimiter", " "),
            baseline=baselines[entry["label"]],
            file=f"eval_data/{entry['dataset_uri']}",
        )

    def examples(self, task: CoreTask) -> list[dict[str, Any]] | None:  # Any: JSON
        """Read all examples of a task; None if its file is not there.

        Raises:
            DataError: a line is no example of the task's kind.
        """
        content = self._read(task.file)
        if content is None:
            return None
        examples = []
        for number, line in enumerate(content.splitlines(), start=1):
            if not line.strip():
                continue
            place = f"{self.address}/{task.file}, line {number},"
            try:
                example = json.loads(line)
            except ValueError as error:
                raise DataError(f"{place} is not JSON: {error}. Fetch the bundle anew.") from error
            problem = find_problem(task.kind, example)
            if problem:
                raise DataError(f"{place} {problem}. Fetch the bundle anew.")
            examples.append(example)
        if not examples:
            raise DataError(f"{self.address}/{task.file} is empty. Fetch the bundle anew.")
        return examples

    def fingerprint(self) -> str:
        """Hash all that its tasks are made of, wherever it lies and however it is packed.

        Raises:
            DataError: core.yaml or eval_meta_data.csv is missing or cannot be understood.
        """
        names = ["core.yaml", "eval_meta_data.csv", *(task.file for task in self.tasks())]
        whole = hashlib.sha256()
        for name in names:
            content = self._read(name)
            whole.update(b"-" if content is None else hashlib.sha256(content).digest())
        return whole.hexdigest()

    def _must_read(self, name: str) -> bytes:
        content = self._read(name)
        if content is None:
            raise DataError(
                f"{self.address} has no {name}. Give the CORE bundle by --eval-bundle, or leave it "
                "out to fetch the published one."
            )
        return content


def find_problem(kind: str, example: object) -> str | None:
    """Say why an example cannot be asked; None if it can."""
    if not isinstance(example, dict):
        return "is no JSON object"
    for name in KINDS[kind]:
        if name not in example:
            return f"has no {name!r}"
    for name in ("query", "context", "continuation"):
        if name in KINDS[kind] and not isinstance(example[name], str):
            return f"has a {name!r} that is no text"
    for name in ("choices", "context_options"):
        if name in KINDS[kind]:
            options, gold = example[name], example["gold"]
            if not isinstance(options, list) or not all(isinstance(o, str) for o in options):
                return f"has {name!r} that are no list of texts"
            if not isinstance(gold, int) or not 0 <= gold < len(options):
                return f"has the right answer {gold!r}, of {len(options)} options"
    return None


def open_bundle(address: str | None) -> Bundle:
    """Open a folder or a zip file; by default the published bundle, which is fetched once.

    Raises:
        InputError: there is nothing at the address.
    """
    path = address or fetch_once(PUBLISHED, ZIP, "A bundle that is here is given by --eval-bundle.")
    if os.path.isdir(path):
        return Bundle(path, folder_reader(path))
    if zipfile.is_zipfile(path):
        return Bundle(path, zip_reader(path))
    raise InputError(f"--eval-bundle {path} is neither a folder nor a zip file.")


def folder_reader(folder: str) -> Callable[[str], bytes | None]:
    """Read files of a folder, or of `eval_bundle` in it."""
    inner = Path(folder) / "eval_bundle"
    base = inner if inner.is_dir() else Path(folder)

    def read(name: str) -> bytes | None:
        path = base / name
        return path.read_bytes() if path.is_file() else None

    return read


def zip_reader(path: str) -> Callable[[str], bytes | None]:
    """Read files of a zip file, at its top or in `eval_bundle`."""

    def read(name: str) -> bytes | None:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            found = next((n for n in (f"eval_bundle/{name}", name) if n in names), None)
            try:
                return None if found is None else archive.read(found)
            except (zipfile.BadZipFile, zlib.error, OSError) as error:
                raise DataError(f"{path} is damaged: {error}. Fetch the bundle anew.") from error

    return read
