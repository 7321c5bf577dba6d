"""A run's metrics as pictures: SVG that follows the page's colours, and one PNG.

Drawn on `matplotlib.figure.Figure`, because pyplot keeps figures in a global list and may ask for
a display. Lines are thinned first: a long run has more steps than a picture has pixels.
"""

import html
import io
import itertools
import math
import re
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nanoray.metrics import Records

MAX_POINTS = 2000
"""Most points of one line: about two per pixel."""
MAX_DOTS = 60
"""Up to this many points each is marked by a dot."""
MIN_SMOOTHED = 20
"""From this many points on, a noisy curve gets a smoothed line."""
ROUND = [1, 2, 2.5, 5, 10]
"""Distances between two numbers on an axis, and their multiples of ten."""
SVG_INCHES, PNG_INCHES, PNG_DPI = (4.8, 2.8), (10.0, 4.4), 200

COLORS = {
    "ink": ("#1d2430", "#e8eaee"),
    "axis": ("#5b6472", "#9aa3b2"),
    "grid": ("#e4e7ec", "#2c323c"),
    "line": ("#2463d6", "#7aa7ff"),
    "faint": ("#b4ccf6", "#35507f"),
    "other": ("#c2571a", "#ff9d5c"),
}
"""Name in the page's CSS -> light and dark colour. In an SVG each light one becomes its name."""
INK, AXIS, GRID, LINE, FAINT, OTHER = (light for light, _ in COLORS.values())


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What one picture shows."""

    title: str
    unit: str
    """Label of the y axis."""
    key: str
    """The value's name in metrics.jsonl."""
    share_of: str | None = None
    """Show percent of this value, where given."""
    is_noisy: bool = False
    """Draw a smoothed line over the values."""
    is_loss: bool = False
    """Cut off the fall of the first steps, and show tokens along the upper edge."""
    is_optional: bool = False
    """Many runs have no such values."""
    is_log: bool = False
    from_zero: bool = False


LOSS = Plot(
    title="Training loss", unit="nats per token", key="train/loss", is_noisy=True, is_loss=True
)
BITS_PER_BYTE = Plot(
    title="Validation", unit="bits per byte", key="validation/bits_per_byte", is_loss=True
)
PLOTS = (
    LOSS,
    BITS_PER_BYTE,
    Plot(
        title="Reward",
        unit="mean of a step's answers",
        key="rl/reward",
        is_noisy=True,
        is_optional=True,
        from_zero=True,
    ),
    Plot(
        title="Held-out questions",
        unit="pass@1",
        key="validation/pass_at_1",
        is_optional=True,
        from_zero=True,
    ),
    Plot(title="CORE", unit="mean of centred accuracies", key="eval/core", is_optional=True),
    Plot(
        title="Learning rate",
        unit="multiple of the highest",
        key="train/lr_multiplier",
        from_zero=True,
    ),
    Plot(
        title="Gradient norm",
        unit="before clipping, log scale",
        key="train/grad_norm",
        is_noisy=True,
        is_log=True,
    ),
    Plot(
        title="Throughput",
        unit="tokens per second",
        key="train/tokens_per_second",
        is_noisy=True,
        from_zero=True,
    ),
    Plot(
        title="Waiting for data",
        unit="% of the step's time",
        key="train/data_wait_seconds",
        share_of="train/step_seconds",
        is_noisy=True,
        from_zero=True,
    ),
)


@dataclass(frozen=True)
class Curve:
    """Values by step; nan where a value was no finite number."""

    steps: np.ndarray
    """(n,) float64, rising."""
    values: np.ndarray
    """(n,) float64."""


@dataclass(frozen=True)
class History:
    """What the plots show of a run."""

    steps: np.ndarray
    """(n,) float64: every step with a record."""
    tokens: np.ndarray
    """(n,) float64: tokens seen after each of these steps; nan where unknown."""
    curves: dict[Plot, Curve]
    """One for each of `PLOTS` that has a value at any step."""


def read_history(records: Records) -> History:
    """Take from the metrics what is plotted."""
    curves = {}
    for plot in PLOTS:
        whole_key = plot.share_of or plot.key
        present = [record for record in records if plot.key in record and whole_key in record]
        values = numbers(present, plot.key)
        if plot.share_of is not None:
            whole = numbers(present, plot.share_of)
            values = 100 * values / np.where(whole > 0, whole, np.nan)
        if present:
            curves[plot] = Curve(numbers(present, "step"), values)
    return History(numbers(records, "step"), numbers(records, "tokens"), curves)


def numbers(records: Records, key: str) -> np.ndarray:
    """Give a value of each record, (n,) float64; nan for inf, None and whatever cannot be drawn."""
    values = (record.get(key) for record in records)
    drawable = (v if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in values)
    return np.fromiter(drawable, dtype=np.float64, count=len(records))


def thin(curve: Curve) -> Curve:
    """Keep the least and the greatest value of each stretch, so that no spike is lost."""
    n = len(curve.values)
    if n <= MAX_POINTS:
        return curve
    kept: list[int] = []
    edges = np.linspace(0, n, MAX_POINTS // 2 + 1).astype(int).tolist()
    for start, end in itertools.pairwise(edges):
        stretch = curve.values[start:end]
        if np.isnan(stretch).all():
            kept.append(start)
            continue
        kept += sorted({start + int(np.nanargmin(stretch)), start + int(np.nanargmax(stretch))})
    return Curve(curve.steps[kept], curve.values[kept])


def smoothing_width(num_values: int) -> int:
    """Say over how many values the smoothed line averages: always an odd number."""
    return 2 * max(1, num_values // 100) + 1


def smooth(curve: Curve) -> Curve:
    """Average around at most 500 of the steps.

    Near the beginning the window shrinks, because the loss falls so fast there that a wide one
    would lie. Each mean is taken anew: running sums would carry one huge value into all later ones.
    """
    values, n = curve.values, len(curve.values)
    half = smoothing_width(n) // 2
    centers = np.unique(np.linspace(0, n - 1, 500).astype(int))
    means = np.full(len(centers), np.nan)
    for i, center in enumerate(centers.tolist()):
        reach = min(center, half)
        window = values[center - reach : center + reach + 1]
        if not np.isnan(values[center]):
            means[i] = window[~np.isnan(window)].mean()
    return Curve(curve.steps[centers], means)


def draw_line(axes: Axes, curve: Curve, color: str, width: float) -> None:
    """Draw a line that breaks at nan; a point without neighbours becomes a dot."""
    missing = np.concatenate([[True], np.isnan(curve.values), [True]])
    alone = ~missing[1:-1] & missing[:-2] & missing[2:]
    dots = np.flatnonzero(alone | (len(alone) <= MAX_DOTS)).tolist()
    axes.plot(
        curve.steps,
        curve.values,
        color=color,
        linewidth=width,
        marker="o",
        markersize=2.0 + width,
        markeredgewidth=0,
        markevery=dots,
    )


def draw_plot(axes: Axes, plot: Plot, history: History) -> None:
    """Draw one plot with its axes; where it has no values, say so instead."""
    if plot not in history.curves:
        axes.text(0.5, 0.5, "no step recorded", color=AXIS, ha="center", va="center")
        axes.set_axis_off()
        return
    curve = history.curves[plot]
    if plot.is_log:
        curve = Curve(curve.steps, np.where(curve.values > 0, curve.values, np.nan))
        axes.set_yscale("log")
    is_smoothed = plot.is_noisy and len(curve.values) >= MIN_SMOOTHED
    draw_line(axes, thin(curve), *((FAINT, 0.8) if is_smoothed else (LINE, 1.4)))
    if is_smoothed:
        draw_line(axes, smooth(curve), LINE, 1.4)
    style_axes(axes, plot)
    first, last = history.steps[0], history.steps[-1]
    room = 0.015 * (last - first) or 1.0
    axes.set_xlim(first - room, last + room)  # the same in all plots, though some have fewer values
    if plot.from_zero:
        axes.set_ylim(bottom=0)
    if plot.is_loss:
        cut_first_fall(axes, curve)
        show_tokens(axes, history)


def style_axes(axes: Axes, plot: Plot) -> None:
    """Label the axes, and take away all ink that says nothing."""
    axes.set_xlabel("step", color=AXIS)
    axes.set_ylabel(plot.unit, color=AXIS)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=ROUND))
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5)) if plot.is_log else MaxNLocator(nbins=5, steps=ROUND)
    )
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(short_number))
    axes.tick_params(colors=AXIS, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def cut_first_fall(axes: Axes, curve: Curve) -> None:
    """End the y axis at the greatest value after the first twentieth of the steps.

    The fall from a random model's loss would leave the rest of the run a flat line.
    """
    rest = curve.values[len(curve.values) // 20 :]
    rest = rest[~np.isnan(rest)]
    if len(curve.values) < MIN_SMOOTHED or not len(rest):
        return
    low, high = float(rest.min()), float(rest.max())
    room = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - room, high + room)


def show_tokens(axes: Axes, history: History) -> None:
    """Write round numbers of tokens along the upper edge, each above the step that reached it."""
    tokens, steps = history.tokens, history.steps
    if len(tokens) < 2 or np.isnan(tokens).any() or tokens[0] >= tokens[-1]:
        return
    round_numbers = MaxNLocator(nbins=6, steps=ROUND).tick_values(tokens[0], tokens[-1])
    ticks = [float(t) for t in round_numbers if tokens[0] <= t <= tokens[-1]]
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, tokens, steps).tolist(), [short_number(t) for t in ticks])
    top.set_xlabel("tokens", color=AXIS)
    top.tick_params(colors=AXIS, length=0)
    top.spines[:].set_visible(False)


def short_number(value: float, _position: int | None = None) -> str:
    """Write a number for an axis: 0.5, 20k, 1.5M, 3B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def draw_svg(plot: Plot, history: History) -> str:
    """Give a plot as an <svg> element whose colours are the page's CSS variables."""
    figure = Figure(figsize=SVG_INCHES, layout="constrained")
    draw_plot(figure.add_subplot(), plot, history)
    return as_svg(figure, plot.key, f"{plot.title}, {plot.unit}, by step")


def as_svg(figure: Figure, key: str, label: str) -> str:
    """Give a figure as an <svg> element whose colours are the page's CSS variables.

    Args:
        figure: drawn in the light ones of `COLORS`.
        key: differs between the drawings of a page.
        label: for those who cannot see it.
    """
    target = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Letters stay text, and the ids of several drawings on one page must differ.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    drawing = target.getvalue()
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None, "matplotlib writes a viewBox"
    body = drawing[
        drawing.index("</defs>") + len("</defs>") :
    ]  # its first <defs> would style the page
    body = re.sub(r'(<g) id="[^"]*"| font-family: [^;"]*;', r"\1", body)
    for name, (light, _) in COLORS.items():
        body = body.replace(light, f"var(--{name})")
    return f'<svg {box.group()} role="img" aria-label="{html.escape(label)}">{body.strip()}'


def draw_png(title: str, history: History) -> bytes:
    """Give loss and validation side by side as a PNG, 2000 pixels wide."""
    figure = Figure(figsize=PNG_INCHES, dpi=PNG_DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, color=INK, fontsize=13, parse_math=False)  # a run's name may hold a $
    shown = [plot for plot in (LOSS, BITS_PER_BYTE) if plot in history.curves] or [LOSS]
    for axes, plot in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_plot(axes, plot, history)
        axes.set_title(plot.title, color=INK, fontsize=11)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()
