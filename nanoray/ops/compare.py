"""What an idea is worth: how much compute one sweep needs for what another one reaches.

Along a curve of finished runs, loss falls with the compute of a run. At the worse of the two best
losses, which both sweeps reach, the ratio of compute is read off, by straight lines between points
over log FLOPs. Only ends of runs are compared: in the middle of one the learning rate has not
fallen, and its loss would be too high.
"""

import io
import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from scipy import stats

from nanoray.cluster import connection
from nanoray.config import InputError
from nanoray.ops.sweep_config import SweepConfig
from nanoray.ops.trial_table import Status, TrialRow, read_trials

CONFIDENCE = 0.95
FARTHEST = 10.0
"""A curve is drawn out to at most so many times less compute than its smallest run has."""

Curve = list[tuple[float, float]]
"""FLOPs and bits per byte of runs, FLOPs rising."""
Place = Callable[[TrialRow], str]


@dataclass(frozen=True)
class Multiplier:
    """How many times the compute of B a run of A needs for the same loss."""

    place: str
    """Which runs were compared."""
    value: float
    bits_per_byte: float
    """Where it was read off."""
    is_extrapolated: bool
    """One of the sweeps has no run as bad as that, and its line was drawn out."""


@dataclass(frozen=True)
class Comparison:
    """All that two sweeps say of each other."""

    multipliers: list[Multiplier]
    left_out: list[str]

    @property
    def mean(self) -> float:
        """The geometric mean."""
        return math.exp(statistics.fmean(math.log(one.value) for one in self.multipliers))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's interval of the mean of the logarithms; None for a single value."""
        logs = [math.log(one.value) for one in self.multipliers]
        if len(logs) < 2:
            return None
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(logs) - 1))
        half *= statistics.stdev(logs) / math.sqrt(len(logs))
        return math.exp(statistics.fmean(logs) - half), math.exp(statistics.fmean(logs) + half)


def compare_sweeps(config: SweepConfig) -> str:
    """Compare the two sweeps that are named, for a person.

    Raises:
        InputError: there is nothing in them that can be compared.
    """
    assert config.compare is not None, "asked for"
    storage = connection.absolute_address(config.pretrain.storage or "runs")
    names = config.compare
    tables = [read_trials(f"{storage}/{name}") for name in names]
    return told(names, compare(*tables))


def compare(a: list[TrialRow], b: list[TrialRow]) -> Comparison:
    """Read off the multiplier of each pair of curves.

    Curves run over the lengths of runs of one depth and seed. Where a depth has one length only,
    they run over the depths of one length and seed instead.

    Raises:
        InputError: no two curves belong together.
    """
    done = [[row for row in rows if row.status is Status.DONE] for rows in (a, b)]
    by_depth = [curves(rows, lambda r: f"depth {r.depth}, seed {r.seed}") for rows in done]
    by_length = [
        curves(rows, lambda r: f"{r.tokens_per_param:g} tokens per parameter, seed {r.seed}")
        for rows in done
    ]
    for one, other in (by_depth, by_length):
        common = [place for place in one if place in other]
        if common:
            read = [(place, read_off(place, one[place], other[place])) for place in common]
            found = [value for _, value in read if value is not None]
            apart = [f"{place} (losses too far apart)" for place, value in read if value is None]
            lonely = sorted(set(one) ^ set(other))
            if found:
                return Comparison(found, [*unfinished(a), *unfinished(b), *lonely, *apart])
            raise InputError(
                "The losses of the two sweeps are so far apart that a curve would have to be drawn "
                f"out by more than {FARTHEST:g} times its compute. Give the worse one larger runs, "
                "or the better one smaller ones."
            )
    raise InputError(
        "The two sweeps have no two runs of the same depth and seed in common, and so nothing to "
        "compare. Run both with the same --depths, at least two --ratios, and the same --seeds."
    )


def curves(rows: list[TrialRow], place: Place) -> dict[str, Curve]:
    """Gather the runs of each place, where there are at least two."""
    found: dict[str, Curve] = {}
    for row in sorted(rows, key=lambda r: r.flops):
        assert row.bits_per_byte is not None, "done"
        found.setdefault(place(row), []).append((row.flops, row.bits_per_byte))
    return {name: curve for name, curve in found.items() if len(curve) > 1}


def unfinished(rows: list[TrialRow]) -> list[str]:
    """Name the trials without a result."""
    return [f"{row.name} ({row.status})" for row in rows if row.status is not Status.DONE]


def read_off(place: str, a: Curve, b: Curve) -> Multiplier | None:
    """Compare two curves at the worse of their best losses; None where they are too far apart."""
    level = max(min(bits for _, bits in curve) for curve in (a, b))
    for curve in (a, b):
        log_flops, is_drawn_out = log_flops_at(curve, level)
        if is_drawn_out and math.log(curve[0][0]) - log_flops > math.log(FARTHEST):
            return None
    (log_a, drawn_a), (log_b, drawn_b) = (log_flops_at(curve, level) for curve in (a, b))
    return Multiplier(place, math.exp(log_a - log_b), level, drawn_a or drawn_b)


def log_flops_at(curve: Curve, level: float) -> tuple[float, bool]:
    """Give the logarithm of the compute at which a curve first comes down to a loss.

    The second value says that the curve begins below it, and its first line was drawn out.
    """
    points = [(math.log(flops), bits) for flops, bits in curve]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 > y1 and y1 <= level:
            return x0 + (y0 - level) / (y0 - y1) * (x1 - x0), level > y0
    return next(x for x, y in points if y <= level), False


def told(names: tuple[str, str], comparison: Comparison) -> str:
    """Write a comparison for a person."""
    a, b = names
    table = Table(box=None, pad_edge=False)
    for name in ("runs", "at bits per byte", f"compute of {a} / {b}"):
        table.add_column(name, justify="left" if name == "runs" else "right")
    for one in comparison.multipliers:
        sign = " (line drawn out)" if one.is_extrapolated else ""
        table.add_row(one.place, f"{one.bits_per_byte:.4f}", f"{one.value:.3f}{sign}")
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    lines = [console.export_text().rstrip(), "", verdict(names, comparison)]
    if comparison.left_out:
        lines.append(f"left out: {', '.join(comparison.left_out)}")
    return "\n".join(lines)


def verdict(names: tuple[str, str], comparison: Comparison) -> str:
    """Say what the comparison comes to."""
    a, b = names
    mean, interval = comparison.mean, comparison.interval
    if interval is None:
        return (
            f"{a} needs {mean:.3f} times the compute of {b}; one pair of curves gives no interval. "
            "Add --depths or --seeds to both."
        )
    low, high = interval
    said = f"{a} needs {mean:.3f} times the compute of {b} (95 % interval {low:.3f} to {high:.3f}"
    said += f", {len(comparison.multipliers)} pairs of curves)"
    if low > 1:
        return f"{said}: {b} is better."
    if high < 1:
        return f"{said}: {a} is better."
    return f"{said}: they cannot be told apart."
