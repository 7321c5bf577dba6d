"""What a person sees of a run: a bar on a terminal, lines elsewhere and where they are JSON."""

import statistics
import sys
import time
from collections import deque
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from nanoray import logs
from nanoray.credentials import without_secrets


class Facts(ProgressColumn):
    """Loss, speed, utilization and cost of the newest step."""

    def render(self, task: Task) -> Text:
        """Give the column's text."""
        return Text(describe(task.fields.get("values", {})), style="cyan")


FACTS = (
    ("train/loss", 1, "loss {:.4f}"),
    ("train/tokens_per_second", 1, "{:,.0f} tok/s"),
    ("train/mfu", 100, "mfu {:.1f} %"),
    ("validation/bits_per_byte", 1, "bpb {:.4f}"),
    ("rl/reward", 1, "reward {:.3f}"),
    ("validation/pass_at_1", 1, "pass@1 {:.3f}"),
    ("cost/dollars", 1, "${:,.2f}"),
)
"""What is told of a step: its name, a factor, and how it is written."""


def describe(values: dict[str, Any]) -> str:  # Any: JSON
    """Say in a few words what a step did; what is not known is left out."""
    known = [
        text.format(factor * values[name])
        for name, factor, text in FACTS
        if values.get(name) is not None
    ]
    return "  ".join(known) or "starting"


class RunDisplay:
    """Shows steps as they come; `log` prints a line above the bar."""

    def __init__(self, num_steps: int, *, log_every: int, stream: TextIO | None = None) -> None:
        self.num_steps, self.log_every = num_steps, log_every
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.last_bpb: float | None = None
        self.step_seconds: deque[float] = deque(maxlen=20)
        if self.console.is_terminal and not logs.are_json():
            self.bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(bar_width=None),
                Facts(),
                TimeRemainingColumn(),
                console=self.console,
                refresh_per_second=4,
            )
            self.task = self.bar.add_task("", total=num_steps)
            self.bar.start()

    def log(self, line: str) -> None:
        """Print one line of news."""
        if logs.are_json():
            self.console.file.write(logs.json_line("INFO", __name__, line) + "\n")
            self.console.file.flush()
            return
        line = without_secrets(line)  # of workers, whose libraries tell addresses in their errors
        self.console.print(f"{time.strftime('%H:%M:%S')} {line}", markup=False)

    def show(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Show the newest step."""
        step, bpb = int(values["step"]), values.get("validation/bits_per_byte")
        self.last_bpb = bpb if bpb is not None else self.last_bpb
        shown = (
            values
            if self.last_bpb is None
            else {**values, "validation/bits_per_byte": self.last_bpb}
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step, values=shown)
            return
        if "train/step_seconds" in values:
            self.step_seconds.append(values["train/step_seconds"])
        measured = any(name.startswith("validation/") for name in values)
        if step % self.log_every == 0 or step == self.num_steps or measured:
            # The median: the first step compiles the model, and takes a hundred times as long.
            left = (self.num_steps - step) * statistics.median(self.step_seconds or [0.0])
            self.log(f"step {step}/{self.num_steps}  {describe(values)}  {duration(left)} left")

    def close(self) -> None:
        """Take the bar away from the terminal's live area."""
        if self.bar is not None:
            self.bar.stop()


def duration(seconds: float) -> str:
    """Write a time as people do: 45 s, 12 min, 3.4 h, 4.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
