"""What an evaluation found: kept beside the checkpoint, shown as a table, compared with another."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.statistics import (
    Interval,
    centered,
    difference_interval,
    mean_interval,
    wilson_interval,
)
from nanoray.config import FORMAT_VERSION, InputError

GROUPS = {"core": "CORE", "chat": "ChatCORE"}
"""Kinds of tasks, and the name of the mean over all of a kind."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How one task went."""

    name: str
    group: str
    """A key of GROUPS."""
    baseline: float
    """Share of right answers that guessing gives."""
    outcomes: str
    """A 1 for each right answer, else 0, in the order of the examples."""
    num_available: int
    """Examples that the task has in all."""
    notes: dict[str, int]
    """What was told of answers, and of how many."""
    seconds: float
    """Of all actors together."""
    examples_per_second: float
    """By all actors together."""

    @property
    def num_examples(self) -> int:
        """How many were asked."""
        return len(self.outcomes)

    @property
    def right(self) -> list[bool]:
        """Which answers were right."""
        return [outcome == "1" for outcome in self.outcomes]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.outcomes.count("1") / len(self.outcomes)

    @property
    def interval(self) -> Interval:
        """Where the accuracy would be with 95 %, if all possible examples were asked."""
        return wilson_interval(self.outcomes.count("1"), len(self.outcomes))

    @property
    def centered(self) -> float:
        """The accuracy, on a scale on which guessing is 0."""
        return centered(self.accuracy, self.baseline)

    @property
    def is_sample(self) -> bool:
        """Whether only some of the examples were asked."""
        return self.num_examples < self.num_available


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of centred accuracies over all tasks of a group."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """All that is known of one model."""

    model: str
    """RUN/stage@step, or the folder of a Hugging Face model."""
    weights: str
    """SHA-256 of the file with the weights."""
    step: int | None
    settings: dict[str, Any]
    """How it was measured: dtype, seeds, sandbox, sources."""
    tasks: tuple[TaskResult, ...]
    left_out: tuple[str, ...] = ()
    """Tasks of CORE that were not scored: then there is no CORE."""
    chat_tasks: tuple[str, ...] = ()
    """Names of the tasks of which ChatCORE is the mean."""
    core_tasks: tuple[str, ...] = ()
    """Names of the tasks of which CORE is the mean."""

    def of_group(self, group: str) -> list[TaskResult]:
        """Give the results of one kind of tasks."""
        return [task for task in self.tasks if task.group == group]

    def mean(self, group: str) -> Mean | None:
        """Give CORE or ChatCORE; None unless each of its tasks was scored."""
        results = self.of_group(group)
        needed = self.core_tasks if group == "core" else self.chat_tasks
        if not needed or {task.name for task in results} != set(needed):
            return None
        value = sum(task.centered for task in results) / len(results)
        interval = mean_interval([(task.right, task.baseline) for task in results])
        return Mean(value=value, interval=interval)

    def merged(self, newer: "EvalReport") -> "EvalReport":
        """Add the results of a later evaluation of the same weights, which count before these."""
        if newer.weights != self.weights or newer.settings != self.settings:
            return newer
        names = {task.name for task in newer.tasks}
        kept = [task for task in self.tasks if task.name not in names]
        return dataclasses.replace(newer, tasks=(*kept, *newer.tasks))

    def only(self, names: Sequence[str]) -> "EvalReport":
        """Give the results of some tasks, in the order of the names."""
        found = {task.name: task for task in self.tasks}
        tasks = tuple(found[name] for name in names if name in found)
        return dataclasses.replace(self, tasks=tasks)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all of it, and what follows from it for those who only read."""
        means = {GROUPS[group]: self.mean(group) for group in GROUPS}
        return {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "tasks": [
                {
                    **dataclasses.asdict(task),
                    "num_examples": task.num_examples,
                    "accuracy": task.accuracy,
                    "interval_95": task.interval,
                    "centered": task.centered,
                    "is_sample": task.is_sample,
                }
                for task in self.tasks
            ],
            "means": {
                name: {"value": mean.value, "interval_95": mean.interval}
                for name, mean in means.items()
                if mean
            },
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "EvalReport":  # Any: JSON
        """Read what `to_json` gave."""
        own = {field.name for field in dataclasses.fields(TaskResult)}
        tasks = tuple(
            TaskResult(**{key: value for key, value in task.items() if key in own})
            for task in saved["tasks"]
        )
        names = {field.name for field in dataclasses.fields(cls)} - {"tasks"}
        fields = {key: value for key, value in saved.items() if key in names}
        lists = {key: tuple(fields[key]) for key in ("left_out", "chat_tasks", "core_tasks")}
        return cls(**{**fields, **lists}, tasks=tasks)

    def core_csv(self) -> str | None:
        """Write CORE as nanochat's table has it; None where a task is missing."""
        mean = self.mean("core")
        if mean is None:
            return None
        rows = [(task.name, task.accuracy, task.centered) for task in self.of_group("core")]
        lines = [f"{'Task':<35}, {'Accuracy':<10}, {'Centered':<10}"]
        lines += [f"{name:<35}, {acc:<10.6f}, {value:<10.6f}" for name, acc, value in rows]
        return "\n".join([*lines, f"{'CORE':<35}, {'':<10}, {mean.value:<10.6f}\n"])

    def table(self) -> str:
        """Write all results for a terminal."""
        lines = [f"{'':34} accuracy    95 % interval   centred  examples"]
        for task in self.tasks:
            low, high = task.interval
            asked = f"{task.num_examples:,}"
            asked += f" of {task.num_available:,}, a sample" if task.is_sample else ""
            told = ", ".join(f"{count:,} {note}" for note, count in task.notes.items())
            lines.append(
                f"{task.name:34} {task.accuracy:8.4f}  {low:.4f} - {high:.4f}  {task.centered:8.4f}"
                f"  {asked}{f' ({told})' if told else ''}"
            )
        for group, name in GROUPS.items():
            mean, results = self.mean(group), self.of_group(group)
            if mean is not None:
                low, high = mean.interval
                sample = "  of samples" if any(task.is_sample for task in results) else ""
                lines.append(f"{name:34} {'':8}  {low:.4f} - {high:.4f}  {mean.value:8.4f}{sample}")
            elif results and self.left_out:
                lines.append(f"No {name}: without {', '.join(self.left_out)}.")
        return "\n".join(lines)


def compare(first: EvalReport, second: EvalReport) -> str:
    """Write two reports beside each other, with the difference and its 95 % interval.

    Raises:
        InputError: they have no task in common that was asked in the same way.
    """
    theirs = {task.name: task for task in second.tasks}
    pairs = [
        (task, theirs[task.name])
        for task in first.tasks
        if task.name in theirs and theirs[task.name].num_examples == task.num_examples
    ]
    if not pairs:
        raise InputError(f"{first.model} and {second.model} have no results of the same tasks.")
    lines = [
        f"A  {first.model}",
        f"B  {second.model}",
        f"{'':34}        A        B    B - A    95 % interval",
    ]
    for a, b in pairs:
        low, high = difference_interval([(a.right, b.right, 0.0)])
        lines.append(row(a.name, (a.accuracy, b.accuracy), (low, high)))
    for group, name in GROUPS.items():
        means = first.mean(group), second.mean(group)
        if means[0] is None or means[1] is None:
            continue
        compared = [(a.right, b.right, a.baseline) for a, b in pairs if a.group == group]
        values = means[0].value, means[1].value
        lines.append(row(name, values, difference_interval(compared)))
    return "\n".join(lines)


def row(name: str, values: tuple[float, float], interval: Interval) -> str:
    """Write one line of a comparison."""
    a, b = values
    low, high = interval
    return f"{name:34} {a:8.4f} {b:8.4f} {b - a:+8.4f}  {low:+.4f} - {high:+.4f}"


def count_notes(notes: Iterable[str]) -> dict[str, int]:
    """Count what was told of answers, the most frequent first."""
    told: dict[str, int] = {}
    for note in notes:
        if note:
            told[note] = told.get(note, 0) + 1
    return dict(sorted(told.items(), key=lambda item: -item[1]))
