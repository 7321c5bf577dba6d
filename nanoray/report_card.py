"""The report card of a run: what its stages scored, from the results beside their checkpoints."""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nanoray.metrics import PASS_RATE, PASS_RATE_ERROR, Z_95, read_from_before
from nanoray.storage import START_FILE, RunFolder, StageFolder, list_folder, read_json

COLUMNS = {"pretrain": "BASE", "midtrain": "MID", "sft": "SFT", "rl": "RL"}
MEANS = FIRST, LAST = "CORE", "ChatCORE"


@dataclass(frozen=True)
class Score:
    """One entry of the card."""

    value: float
    low: float
    high: float
    """The 95 % interval."""
    step: int
    num_examples: int
    is_sample: bool
    asked_at: float
    """Seconds since 1970; 0 where it is not told."""

    @property
    def rank(self) -> tuple[int, int, float]:
        """What is larger of a score that stands for others."""
        return self.step, self.num_examples, self.asked_at

    def __str__(self) -> str:
        half = (self.high - self.low) / 2
        return f"{self.value:.4f} ± {half:.4f}{'*' if self.is_sample else ''}"


@dataclass(frozen=True)
class Card:
    """Scores by metric and stage."""

    run: str
    scores: dict[str, dict[str, Score]]
    """Metric -> stage -> score; CORE comes first, ChatCORE last."""

    @property
    def stages(self) -> list[str]:
        """The stages that have any score."""
        found = {stage for by_stage in self.scores.values() for stage in by_stage}
        return [stage for stage in COLUMNS if stage in found]

    @property
    def notes(self) -> str:
        """What a reader must know of the numbers."""
        has_sample = any(s.is_sample for row in self.scores.values() for s in row.values())
        told = "± half of the 95 % interval."
        return f"{told} * some of the examples only." if has_sample else told

    def markdown(self) -> str:
        """Write the card in Markdown."""
        stages = self.stages
        lines = [
            f"| {self.run} | {' | '.join(COLUMNS[stage] for stage in stages)} |",
            f"|---|{'---:|' * len(stages)}",
        ]
        for metric, row in self.scores.items():
            cells = [str(row[stage]) if stage in row else "" for stage in stages]
            lines.append(f"| {metric} | {' | '.join(cells)} |")
        return "\n".join([*lines, "", self.notes])

    def to_html(self) -> str:
        """Write the card for report.html."""
        head = "".join(f"<th>{COLUMNS[stage]}</th>" for stage in self.stages)
        rows = []
        for metric, row in self.scores.items():
            cells = "".join(f"<td>{row.get(stage, '')}</td>" for stage in self.stages)
            rows.append(f"<tr><th>{html.escape(metric)}</th>{cells}</tr>")
        body = "\n".join(rows)
        return (
            f'<div class="card"><table class="scores">\n<tr><th></th>{head}</tr>\n{body}\n'
            f"</table></div>\n"
            f'<p class="quiet">{self.notes}</p>'
        )


def read_card(run: RunFolder, stages: Sequence[str] = tuple(COLUMNS)) -> Card | None:
    """Read the results of stages; None where there are none.

    Of each metric and stage the newest step counts, of that the result with most examples, and of
    those the one that was asked for last.
    """
    scores: dict[str, dict[str, Score]] = {}
    for stage in stages:
        for report in reports_of(run.stage(stage)):
            for metric, score in scores_of(report).items():
                before = scores.setdefault(metric, {}).get(stage)
                if before is None or score.rank > before.rank:
                    scores[metric][stage] = score
    if "rl" in stages:
        scores |= pass_rates(run)
    if not scores:
        return None
    order = sorted(scores, key=lambda metric: (metric == LAST, metric != FIRST))
    return Card(run.run, {metric: scores[metric] for metric in order})


def pass_rates(run: RunFolder) -> dict[str, dict[str, Score]]:
    """Read what RL measured itself: how many of the answers that it draws are right.

    That is what it trains for. Answers of evaluations are greedy, and may not change with it. What
    was measured before its first step counts for the stage that it started from.
    """
    folder = run.stage("rl")
    start, config = read_json(folder.fs, folder.path(START_FILE)), folder.read_config()
    measured = [record for record in read_from_before(folder) if PASS_RATE in record]
    if not measured or start is None or config is None:
        return {}
    found = {"rl": measured[-1]}
    name, _, stage = start["from"].partition("@")[0].partition("/")
    if name == run.run and measured[0]["step"] == 0:
        found[stage] = measured[0]
    answers = config["validation_questions"] * config["validation_samples"]
    tasks = f"{config['tasks']}, drawn at temperature {config['temperature']:g} (pass@1)"
    return {tasks: {stage: pass_rate(found[stage], answers) for stage in found}}


def pass_rate(record: dict[str, Any], num_answers: int) -> Score:  # Any: JSON
    """Make a score of what RL measured at a step."""
    value, half = record[PASS_RATE], Z_95 * record.get(PASS_RATE_ERROR, 0.0)
    return Score(value, value - half, value + half, record["step"], num_answers, True, 0.0)


def reports_of(folder: StageFolder) -> Iterator[dict[str, Any]]:  # Any: JSON
    """Read the reports of all steps of a stage."""
    for step in list_folder(folder.fs, folder.path("evals")):
        for name in list_folder(folder.fs, folder.path("evals", step)):
            if name.startswith("report-"):
                yield read_json(folder.fs, folder.path("evals", step, name)) or {}


def scores_of(saved: dict[str, Any]) -> dict[str, Score]:  # Any: JSON
    """Give the means and the tasks of conversations of one report; CORE's tasks are too many."""
    tasks, step = saved.get("tasks", []), int(saved.get("step") or 0)
    found = {}
    for task in tasks:
        if task["group"] == "chat":
            low, high = task["interval_95"]
            count, is_sample = task["num_examples"], task["is_sample"]
            at = task.get("asked_at", 0.0)
            found[task["name"]] = Score(task["accuracy"], low, high, step, count, is_sample, at)
    for name, group in zip(MEANS, ("core", "chat"), strict=True):
        mean = saved.get("means", {}).get(name)
        if mean is not None:
            parts = [t for t in tasks if t["group"] == group and t["name"] in t["suite"]]
            count = sum(task["num_examples"] for task in parts)
            low, high = mean["interval_95"]
            is_sample = any(task["is_sample"] for task in parts)
            at = max((task.get("asked_at", 0.0) for task in parts), default=0.0)
            found[name] = Score(mean["value"], low, high, step, count, is_sample, at)
    return found
