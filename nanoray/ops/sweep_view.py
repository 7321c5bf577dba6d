"""A sweep while it runs: one row per trial, and the budget that stops it."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import ray
from rich.console import Console
from rich.live import Live
from rich.table import Table

from nanoray.cluster.background import repeated
from nanoray.cluster.monitor import find_monitor
from nanoray.data.feed import Actor
from nanoray.ops.trial_rows import folder_of, newest_step, row_of, seconds_spent
from nanoray.ops.trial_table import Status, TrialRow
from nanoray.ops.trials import Trial
from nanoray.progress import duration
from nanoray.storage import is_outage

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
STYLES = {
    Status.DONE: "green",
    Status.RUNNING: "cyan",
    Status.WAITING: "dim",
    Status.FAILED: "red",
    Status.DIVERGED: "red",
    Status.STOPPED: "yellow",
}


@dataclass(frozen=True)
class Shown:
    """A trial as the table shows it."""

    row: TrialRow
    step: int
    seconds: float
    """For which its workers were held, in all starts of the sweep."""


class SweepView:
    """Looks at the trials of a sweep, tells of them, and stops them when the budget is spent."""

    def __init__(
        self,
        trials: list[Trial],
        admission: Actor,
        device: str,
        *,
        most_seconds: float | None = None,
        budget: str = "",
    ) -> None:
        """Begin to look.

        Args:
            trials: of the whole sweep, those that are done too.
            admission: knows which of them train.
            device: what they train on.
            most_seconds: time of workers that all trials together may take.
            budget: the same as the user gave it.
        """
        self.trials, self.admission, self.device = trials, admission, device
        self.most_seconds, self.budget = most_seconds, budget
        self.shown = {trial.name: look_at(trial, device) for trial in trials}
        self.is_spent = False
        self.told: set[str] = set()
        """Trials that were asked to stop."""
        self.console = Console(stderr=True, highlight=False)

    def look(self) -> None:
        """Look at the trials that can have changed, tell what has, and keep to the budget."""
        inside = set(ray.get(self.admission.names_inside.remote()))
        for trial in self.trials:
            before = self.shown[trial.name]
            was_running = before.row.status is Status.RUNNING
            if trial.name not in inside and not was_running:
                continue
            now = look_at(trial, self.device, is_inside=trial.name in inside)
            self.shown[trial.name] = now
            if now.row.status is not before.row.status and not self.console.is_terminal:
                logger.info("%s", tell(now))
        spent = sum(shown.seconds for shown in self.shown.values())
        if self.most_seconds is not None and spent >= self.most_seconds:
            why = f"{self.budget} is spent"
            if not self.is_spent:
                ray.get(self.admission.close.remote(why))
            self.is_spent = True
            self._stop(inside - self.told, why)

    def _look_patiently(self) -> None:
        """Look, unless storage is away: who stopped looking would not keep to the budget."""
        try:
            self.look()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("the trials cannot be looked at now: %s", error)

    def _stop(self, inside: Iterable[str], why: str) -> None:
        """Ask trials to save and stop; one that has just begun can be asked only later."""
        for trial in self.trials:
            if trial.name not in inside:
                continue
            monitor = find_monitor(str(folder_of(trial).run))
            if monitor is not None:
                monitor.ask_to_stop.remote(why)
                self.told.add(trial.name)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few seconds for as long as the context lasts, and show a table on a terminal.

        On a terminal it is drawn anew; elsewhere each change is a line of the log.
        """
        live = Live(console=self.console, refresh_per_second=2, transient=True)

        def look() -> None:
            # A cluster that has gone is reported where the trials run.
            with contextlib.suppress(ray.exceptions.RayError):
                self._look_patiently()
                live.update(as_table(self.shown.values()))

        with live if self.console.is_terminal else contextlib.nullcontext():
            live.update(as_table(self.shown.values()))
            with repeated(look, LOOK_SECONDS, "sweep view"):
                yield
        with contextlib.suppress(ray.exceptions.RayError):
            self.look()


def look_at(trial: Trial, device: str, *, is_inside: bool = False) -> Shown:
    """Read how a trial stands."""
    row = row_of(trial, device)
    if is_inside and row.status is Status.WAITING:
        row = dataclasses.replace(row, status=Status.RUNNING)
    step = int(newest_step(folder_of(trial)).get("step", 0))
    return Shown(row, step, seconds_spent(trial))


def tell(shown: Shown) -> str:
    """Say in one line how a trial stands."""
    row = shown.row
    bits = "" if row.bits_per_byte is None else f", {row.bits_per_byte:.4f} bits per byte"
    time = f" after {duration(shown.seconds)}" if shown.seconds else ""
    return f"{row.name}: {row.status}{time}{bits}{': ' if row.reason else ''}{row.reason}"


def as_table(shown: Iterable[Shown]) -> Table:
    """Give the trials as a table for a terminal."""
    table = Table(box=None, pad_edge=False)
    shown = list(shown)
    has_core = any(one.row.core is not None for one in shown)
    core = ("CORE",) if has_core else ()
    for name in ("trial", "", "step", "tokens", "FLOPs", "bits per byte", *core, "time"):
        table.add_column(name, justify="left" if name in ("trial", "") else "right", no_wrap=True)
    for one in shown:
        row = one.row
        status = f"[{STYLES[row.status]}]{row.status}[/]"
        bits = "" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}"
        table.add_row(
            row.name,
            status,
            f"{one.step:,}/{row.num_steps:,}",
            f"{row.tokens:.3g}",
            f"{row.flops:.3g}",
            bits,
            *(["" if row.core is None else f"{row.core:.4f}"] if has_core else []),
            duration(one.seconds) if one.seconds else "",
        )
    return table
