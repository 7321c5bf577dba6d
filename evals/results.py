"""What an evaluation found: as a table, as JSON, and compared with another."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.statistics import (
    Interval,
    bootstrap_interval,
    centered,
    difference_interval,
    mean_interval,
    wilson_interval,
)
from nanoray.config import FORMAT_VERSION, InputError

GROUPS = {"core": "CORE", "chat": "ChatCORE"}
"""Kinds of tasks, and the name of the mean over all of a kind."""
SHOWN_NOTES = 3
NOT_TOLD = "not told"
"""Source of a result that an older version saved."""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How one task went."""

    name: str
    group: str
    """A key of GROUPS."""
    suite: tuple[str, ...]
    """All tasks of the group; their mean is only made of all of them."""
    questions: str
    """Fingerprint of what was asked."""
    source: str
    """Where the questions come from: one mean is made of one source. Empty where none is needed."""
    asked_at: float
    """Seconds since 1970 when it was last asked for, whether it was measured then or known."""
    sandbox: str | None
    """Isolation of the programs that the model wrote; None where it wrote none."""
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
    """From its first question to its last answer."""

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

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all of it, and what follows from it for those who only read."""
        return {
            **dataclasses.asdict(self),
            "num_examples": self.num_examples,
            "accuracy": self.accuracy,
            "interval_95": self.interval,
            "centered": self.centered,
            "is_sample": self.is_sample,
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "TaskResult":  # Any: JSON
        """Read what `to_json` gave."""
        told = {"source": NOT_TOLD, "asked_at": 0.0, **saved, "suite": tuple(saved["suite"])}
        return cls(**{field.name: told[field.name] for field in dataclasses.fields(cls)})


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean of centred accuracies over all tasks of a group."""

    value: float
    interval: Interval
    """The score interval: also of few answers, or of answers that are all alike."""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """What is known of one model, measured in one way."""

    model: str
    """RUN/stage@step, or the folder of a Hugging Face model."""
    weights: str
    """SHA-256 of the weights."""
    step: int | None
    settings: dict[str, Any]  # Any: JSON
    """How it was measured: precision, samples, seeds."""
    tasks: tuple[TaskResult, ...]

    @property
    def asked_at(self) -> float:
        """When a task of it was last asked for, in seconds since 1970."""
        return max((task.asked_at for task in self.tasks), default=0.0)

    def of_group(self, group: str) -> list[TaskResult]:
        """Give the results that a mean is made of; other tasks stand beside them."""
        return [t for t in self.tasks if t.group == group and t.name in t.suite]

    def left_out(self, group: str) -> list[str]:
        """Name the tasks of a group that were not scored; all tasks know of each other."""
        results = self.of_group(group)
        scored = {task.name for task in results}
        return [name for name in results[0].suite if name not in scored] if results else []

    def mean(self, group: str) -> Mean | None:
        """Give CORE or ChatCORE; None unless each of its tasks was scored."""
        results = self.of_group(group)
        if not results or self.left_out(group):
            return None
        value = sum(task.centered for task in results) / len(results)
        return Mean(value=value, interval=mean_interval(outcomes_of(results)))

    def only(self, names: Sequence[str]) -> "EvalReport":
        """Give the results of some tasks, in the order of the names."""
        found = {task.name: task for task in self.tasks}
        tasks = tuple(found[name] for name in names if name in found)
        return dataclasses.replace(self, tasks=tasks)

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Give all of it."""
        means = {group: self.mean(group) for group in GROUPS}
        return {
            "format_version": FORMAT_VERSION,
            **dataclasses.asdict(self),
            "tasks": [task.to_json() for task in self.tasks],
            "means": {
                GROUPS[group]: {
                    "value": mean.value,
                    "interval_95": mean.interval,
                    "bootstrap_95": bootstrap_interval(outcomes_of(self.of_group(group))),
                }
                for group, mean in means.items()
                if mean
            },
        }

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "EvalReport":  # Any: JSON
        """Read what `to_json` gave."""
        fields = {field.name: saved[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**fields, "tasks": tuple(map(TaskResult.from_json, saved["tasks"]))})

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
        lines = [
            f"{self.model}, {self.settings['dtype']}",
            f"{'':34} accuracy    95 % interval   centred  examples",
        ]
        for task in self.tasks:
            low, high = task.interval
            lines.append(
                f"{task.name:34} {task.accuracy:8.4f}  {low:.4f} - {high:.4f}  {task.centered:8.4f}"
                f"  {asked(task)}{remarks(task)}"
            )
        for group, name in GROUPS.items():
            mean, results = self.mean(group), self.of_group(group)
            if mean is not None:
                low, high = mean.interval
                sample = "  of samples" if any(task.is_sample for task in results) else ""
                lines.append(f"{name:34} {'':8}  {low:.4f} - {high:.4f}  {mean.value:8.4f}{sample}")
            elif results:
                lines.append(f"No {name}: without {', '.join(self.left_out(group))}.")
        return "\n".join(lines)


def outcomes_of(results: Sequence[TaskResult]) -> list[tuple[Sequence[bool], float]]:
    """Give what intervals of a mean are made of."""
    return [(task.right, task.baseline) for task in results]


def asked(task: TaskResult) -> str:
    """Say how many questions were asked, and whether there are more."""
    sample = f" of {task.num_available:,}, a sample" if task.is_sample else ""
    return f"{task.num_examples:,}{sample}"


def remarks(task: TaskResult) -> str:
    """Say what was told of most answers, and in what sandbox programs ran."""
    told = [f"{count:,} {note}" for note, count in task.notes.items()][:SHOWN_NOTES]
    told += [f"{task.sandbox} sandbox"] if task.sandbox else []
    return f" ({', '.join(told)})" if told else ""


def compare(first: EvalReport, second: EvalReport) -> str:
    """Write two reports beside each other, with the difference and its 95 % interval.

    Raises:
        InputError: they have no task in common that was asked in the same way.
    """
    theirs = {task.name: task for task in second.tasks}
    pairs = [
        (task, theirs[task.name])
        for task in first.tasks
        if task.name in theirs and theirs[task.name].questions == task.questions
    ]
    if not pairs:
        raise InputError(f"{first.model} and {second.model} have no results of the same questions.")
    lines = [
        f"A  {first.model}",
        f"B  {second.model}",
        f"{'':34}        A        B    B - A    95 % interval   examples",
    ]
    for a, b in pairs:
        interval = difference_interval([(a.right, b.right, 0.0)])
        lines.append(f"{compared(a.name, (a.accuracy, b.accuracy), interval)}  {asked(a)}")
    for group, name in GROUPS.items():
        means = first.mean(group), second.mean(group)
        if means[0] is None or means[1] is None:
            continue
        outcomes = [
            (a.right, b.right, a.baseline)
            for a, b in pairs
            if a.group == group and a.name in a.suite
        ]
        values = means[0].value, means[1].value
        lines.append(compared(name, values, difference_interval(outcomes)))
    return "\n".join(lines)


def compared(name: str, values: tuple[float, float], interval: Interval) -> str:
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
