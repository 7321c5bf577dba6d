"""The pictures of a forecast: the fits with points and intervals, and what they predicted.

Drawn as reports are (`nanoray/plots.py`): once as a PNG, once as SVG in the colours of the page.
"""

import io
from collections.abc import Callable
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from nanoray.model.scaling import flops_per_token, gpt_config, num_parameters
from nanoray.ops.forecast_facts import Basis, Facts
from nanoray.ops.scaling_fit import BackTest
from nanoray.ops.scaling_law import Array
from nanoray.plots import AXIS, FAINT, GRID, INK, LINE, OTHER, as_svg, short_number

PNG_INCHES, PNG_DPI, SVG_INCHES = (15.0, 8.4), 160, (5.2, 3.4)
"""Of the PNG with three pictures in each of two rows."""
CURVE_POINTS = 80
MOST_CURVES = 8
"""Curves of one picture; more are drawn in part."""
BITS = "validation, bits per byte"


def draw_png(title: str, facts: Facts, basis: Basis) -> bytes:
    """Give all pictures side by side."""
    chosen = panels(basis)
    rows = -(-len(chosen) // 3)
    width, height = PNG_INCHES
    size = (width * min(3, len(chosen)) / 3, height * rows / 2)
    figure = Figure(figsize=size, dpi=PNG_DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, color=INK, fontsize=14, parse_math=False)
    grid = figure.subplots(rows, min(3, len(chosen)), squeeze=False).ravel()
    for axes in grid[len(chosen) :]:
        axes.set_axis_off()
    for axes, (name, draw) in zip(grid, chosen.items(), strict=False):
        draw(axes, facts, basis)
        axes.set_title(name, color=INK, fontsize=11)
    target = io.BytesIO()
    figure.savefig(target, format="png")
    return target.getvalue()


def draw_svgs(facts: Facts, basis: Basis) -> dict[str, str]:
    """Give each picture as an <svg> element by its title."""
    drawn = {}
    for name, draw in panels(basis).items():
        figure = Figure(figsize=SVG_INCHES, layout="constrained")
        draw(figure.add_subplot(), facts, basis)
        drawn[name] = as_svg(figure, name, name)
    return drawn


Place = Literal["best", "upper left", "upper right"]
Draw = Callable[[Axes, Facts, Basis], None]


def panels(basis: Basis) -> dict[str, Draw]:
    """Choose the pictures that the fits have something for: title -> how it is drawn."""
    chosen: dict[str, Draw] = {}
    if basis.fits.isoflops is not None:
        chosen["Sizes at equal FLOPs, and the best of each"] = draw_isoflops
    chosen["Loss against tokens, by depth"] = draw_tokens
    chosen["Loss against compute"] = draw_compute
    if basis.law.has_size:
        chosen["Best size N*(C)"] = draw_best_size
        chosen["Best number of tokens D*(C)"] = draw_best_tokens
        if basis.fits.isoflops is None:
            chosen["Depths at the run's compute"] = draw_depths
    if isinstance(basis.back_test, BackTest):
        chosen["Back-test: the largest budget, predicted"] = draw_back_test
    return chosen


def sides(told: dict[str, float]) -> np.ndarray:
    """Give how far an interval reaches to both sides; a narrow one may lie beside its value."""
    value = told["value"]
    return np.clip([[value - told["low"]], [told["high"] - value]], 0, None)


def draw_isoflops(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw points and parabola of each budget, and the minima with their intervals."""
    found = basis.fits.isoflops
    assert found is not None, "chosen"
    for i, curve in enumerate(found.curves):
        depth = 0.35 + 0.65 * (i + 1) / len(found.curves)
        axes.plot(
            np.exp(curve.log_size), found.losses[i], "o", color=LINE, alpha=depth, markersize=4
        )
        line = np.linspace(curve.log_size[0], curve.log_size[-1], CURVE_POINTS)
        fitted = np.exp(np.polyval(found.parabolas[i], line - curve.center))
        axes.plot(np.exp(line), fitted, color=LINE, alpha=depth, linewidth=1.3)
        beside(axes, float(np.exp(line[-1])), float(fitted[-1]), power(curve.budget))
        best = facts["fits"]["isoflop"]["best_size"][i]
        lowest = float(np.exp(np.polyval(found.parabolas[i], np.log(best["value"]) - curve.center)))
        error = sides(best)
        axes.errorbar(
            best["value"], lowest, xerr=error, fmt="D", color=OTHER, markersize=5, capsize=3,
            elinewidth=1.3, label="best size, with interval" if not i else None,
        )  # fmt: skip
    sizes = np.concatenate([curve.log_size for curve in found.curves])
    room = 0.06 * np.ptp(sizes)
    axes.set_xlim(np.exp(sizes.min() - room), np.exp(sizes.max() + 5 * room))
    style(axes, "N, weights that multiply", BITS)
    legend(axes)


def draw_tokens(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw every trial, and the law along the tokens of each depth."""
    rows = basis.trials.used
    depths = sorted({row.depth for row in rows})
    step = -(-len(depths) // MOST_CURVES)
    for i, depth in enumerate(depths[::-1][::step]):
        own = [row for row in rows if row.depth == depth]
        shade = 1 - 0.65 * i / max(1, len(depths[::step]) - 1)
        tokens = np.array([float(row.tokens) for row in own])
        losses = np.array([row.bits_per_byte for row in own], dtype=np.float64)
        axes.plot(tokens, losses, "o", color=LINE, alpha=shade, markersize=4)
        size = np.array([float(own[0].scaling_parameters)])
        if not basis.law.has_size and size[0] != basis.points.size[0]:
            continue
        line = np.geomspace(tokens.min(), tokens.max() * 1.0001, CURVE_POINTS)
        fitted = basis.law.loss(size, line)
        axes.plot(line, fitted, color=LINE, alpha=shade, linewidth=1.3)
        above(axes, float(line[0]), float(fitted[0]), f"d{depth}")
    axes.margins(y=0.09)
    style(axes, "D, training tokens", BITS)


def draw_compute(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw trials, the least loss by compute with its interval, and the forecast."""
    points, law = basis.points, basis.law
    run, told = facts["run"], facts["predicted"]["bits_per_byte"]
    ends = np.array([points.flops.min(), max(points.flops.max(), run["total_flops"])])
    budgets = np.geomspace(ends[0], 1.3 * ends[1], 24)
    if law.has_size:
        size = law.best_size(budgets, basis.fits.cost)
        name = "least loss by the law"
    else:
        size = np.full(len(budgets), points.size[0])
        name = "the law of this depth"
    tokens = budgets / basis.fits.cost(size)
    quantiles = (1 - basis.interval) / 2, (1 + basis.interval) / 2
    low, high = np.quantile(law.loss_draws(size, tokens, of_a_run=True), quantiles, axis=0)
    axes.fill_between(budgets, low, high, color=FAINT, alpha=0.55, linewidth=0)
    axes.plot(budgets, law.loss(size, tokens), color=LINE, linewidth=1.6, label=name)
    axes.plot(points.flops, points.loss, "o", color=LINE, alpha=0.55, markersize=4, label="trials")
    error = sides(told)
    axes.errorbar(
        run["total_flops"], told["value"], yerr=error, fmt="D", color=OTHER, markersize=6,
        capsize=4, label=f"forecast: d{facts['depth']} at ratio {run['tokens_per_param']:.3g}",
    )  # fmt: skip
    axes.set_ylim(*around([*points.loss, told["low"], told["high"], told["value"]]))
    style(axes, "C, training FLOPs", BITS, x_form=power)
    legend(axes, "upper right")


def draw_best_size(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw N*(C) by both methods."""
    draw_best(axes, facts, basis, is_size=True)
    style(axes, "C, training FLOPs", "N*, weights that multiply", x_form=power, log_y=True)
    legend(axes, "upper left")


def draw_best_tokens(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw D*(C) by both methods."""
    draw_best(axes, facts, basis, is_size=False)
    style(axes, "C, training FLOPs", "D*, training tokens", x_form=power, log_y=True)
    legend(axes, "upper left")


def draw_best(axes: Axes, facts: Facts, basis: Basis, *, is_size: bool) -> None:
    """Draw lines and bands of both methods, and the minima with their intervals."""
    cost, quantiles = basis.fits.cost, [(1 - basis.interval) / 2, (1 + basis.interval) / 2]
    most = max(basis.points.flops.max(), facts["run"]["total_flops"])
    budgets = np.geomspace(basis.points.flops.min(), 1.3 * most, 24)

    def shown(size: Array, at: Array) -> Array:
        return size if is_size else at / cost(size)

    by_law = shown(basis.law.best_size(budgets, cost), budgets)
    drawn = shown(basis.law.best_size_draws(budgets, cost), budgets)
    axes.fill_between(
        budgets, *np.quantile(drawn, quantiles, axis=0), color=FAINT, alpha=0.55, lw=0
    )
    axes.plot(budgets, by_law, color=LINE, linewidth=1.6, label="law")
    found = basis.fits.isoflops
    if found is not None:
        line = found.size_law if is_size else found.tokens_law
        if line.exponent is not None:
            edges = np.quantile(line.draws_at(budgets), quantiles, axis=0)
            axes.fill_between(budgets, *edges, color=OTHER, alpha=0.15, lw=0)
            axes.plot(budgets, line.at(budgets), "--", color=OTHER, linewidth=1.4, label="isoFLOP")
        at = np.array([curve.budget for curve in found.curves])
        value = shown(found.size, at)
        low, high = np.quantile(shown(found.size_draws, at), quantiles, axis=0)
        error = np.clip([value - low, high - value], 0, None)
        axes.errorbar(
            at, value, yerr=error, fmt="D", color=OTHER, markersize=4, capsize=3, elinewidth=1.2
        )
    asked = facts["run"]["scaling_parameters"] if is_size else facts["run"]["tokens"]
    axes.plot(
        facts["run"]["total_flops"], asked, "*", color=INK, markersize=10, label="the run asked for"
    )
    # A band of few trials may be wider than any axis: the lines and points decide its range.
    axes.set_ylim(min(by_law.min(), asked) / 4, max(by_law.max(), asked) * 4)


def draw_depths(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw the loss of every depth at the compute of the run."""
    shape, flops = basis.trials.shape, facts["run"]["total_flops"]
    middle = next(iter(facts["best"].values()))["depth"]
    least, most = min(middle, facts["depth"]), max(middle, facts["depth"])
    depths = np.arange(max(1, least // 2), 2 * most + 1)
    models = [
        gpt_config(int(d), shape.vocab_size, head_dim=64, max_seq_len=shape.max_seq_len)
        for d in depths
    ]
    size = np.array([float(num_parameters(m) - m.vocab_size * m.model_dim) for m in models])
    tokens = flops / np.array([flops_per_token(model) for model in models])
    quantiles = [(1 - basis.interval) / 2, (1 + basis.interval) / 2]
    low, high = np.quantile(basis.law.loss_draws(size, tokens), quantiles, axis=0)
    axes.fill_between(depths, low, high, color=FAINT, alpha=0.55, linewidth=0)
    axes.plot(depths, basis.law.loss(size, tokens), color=LINE, linewidth=1.6)
    axes.axvline(middle, color=OTHER, linewidth=1.2, label=f"best: d{middle}")
    axes.axvline(
        facts["depth"], color=INK, linestyle=":", linewidth=1.2, label=f"asked: d{facts['depth']}"
    )
    style(axes, "depth, blocks", BITS, log_x=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    legend(axes, "upper right")


def draw_back_test(axes: Axes, facts: Facts, basis: Basis) -> None:
    """Draw what was predicted, with its interval, against what was measured."""
    test = basis.back_test
    assert isinstance(test, BackTest), "chosen"
    value = np.array([p.value for p in test.predicted])
    low, high = (np.array([getattr(p, end) for p in test.predicted]) for end in ("low", "high"))
    inside = (low <= test.measured) & (test.measured <= high)
    for chosen, color, name in ((inside, LINE, "inside"), (~inside, OTHER, "outside")):
        if chosen.any():
            error = np.clip([(value - low)[chosen], (high - value)[chosen]], 0, None)
            axes.errorbar(
                test.measured[chosen], value[chosen], yerr=error, fmt="o", color=color,
                markersize=5, capsize=3, elinewidth=1.2,
                label=f"{name}: {chosen.sum()} of {len(chosen)}",
            )  # fmt: skip
    ends = around([*test.measured, *low, *high])
    axes.plot(ends, ends, color=AXIS, linewidth=1, linestyle=":", label="as measured")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    style(axes, "measured, bits per byte", "predicted, bits per byte", log_x=False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    legend(axes)


def around(values: list[float]) -> tuple[float, float]:
    """Give the ends of an axis that holds some values."""
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room


def power(value: float, _position: int | None = None) -> str:
    """Write FLOPs: 1e18, 2.15e18."""
    factor, _, exponent = f"{value:.2e}".partition("e")
    factor = factor.rstrip("0").rstrip(".")
    return f"{factor}e{int(exponent)}"


def beside(axes: Axes, x: float, y: float, text: str) -> None:
    """Write to the right of a curve's end."""
    axes.annotate(
        text, (x, y), (5, 3), textcoords="offset points", color=AXIS, fontsize=8, va="bottom"
    )


def above(axes: Axes, x: float, y: float, text: str) -> None:
    """Write over a curve's beginning, where the curves of a sweep lie apart."""
    axes.annotate(
        text, (x, y), (2, 6), textcoords="offset points", color=AXIS, fontsize=8, ha="center"
    )


def legend(axes: Axes, place: Place = "best") -> None:
    """Explain the marks."""
    axes.legend(loc=place, frameon=False, fontsize=8, labelcolor=AXIS)


def style(
    axes: Axes,
    x_label: str,
    y_label: str,
    *,
    x_form: Callable[[float, int | None], str] = short_number,
    log_x: bool = True,
    log_y: bool = False,
) -> None:
    """Label the axes, and take away all ink that says nothing."""
    axes.set_xlabel(x_label, color=AXIS)
    axes.set_ylabel(y_label, color=AXIS)
    for axis, is_log, form in (
        (axes.xaxis, log_x, x_form),
        (axes.yaxis, log_y, short_number),
    ):
        if is_log:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            low, high = axes.get_xlim() if axis is axes.xaxis else axes.get_ylim()
            decades = np.log10(high / low)
            axis.set_major_locator(
                LogLocator(subs=(1, 2, 5) if decades < 1.8 else (1,), numticks=7)
            )
        else:
            axis.set_major_locator(MaxNLocator(nbins=6))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(form))
    axes.tick_params(colors=AXIS, length=0, labelsize=8.5)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
