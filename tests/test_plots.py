import math
import re
import struct
from collections.abc import Sequence

import matplotlib
import numpy as np
import pytest

from nanoray.metrics import Records
from nanoray.plots import (
    BITS_PER_BYTE,
    COLORS,
    LOSS,
    MAX_POINTS,
    PLOTS,
    Curve,
    History,
    draw_png,
    draw_svg,
    read_history,
    short_number,
    smooth,
    thin,
)

WAITING = PLOTS[-1]


def losses(values: Sequence[object]) -> History:
    return read_history(
        [
            {"step": step, "tokens": 1000 * step, "train/loss": value}
            for step, value in enumerate(values, start=1)
        ]
    )


def polylines(svg: str) -> list[str]:
    """The paths drawn in a line's colour; grid lines and dots have other ones, or a fill."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    return [d for d, style in paths if "stroke: var(--line)" in style or "var(--faint)" in style]


def test_values_that_are_no_finite_numbers_become_nan() -> None:
    values: list[object] = [2.5, math.nan, math.inf, -math.inf, None, "2.5", 3]

    curve = losses(values).curves[LOSS]

    assert np.array_equal(curve.values, [2.5, *[math.nan] * 5, 3.0], equal_nan=True)
    assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_steps_without_a_value_are_no_gaps() -> None:
    records: Records = [{"step": 1}, {"step": 2, "validation/bits_per_byte": 1.5}, {"step": 3}]

    history = read_history(records)

    assert history.curves[BITS_PER_BYTE].steps.tolist() == [2]
    assert not np.isnan(history.curves[BITS_PER_BYTE].values).any()
    assert LOSS not in history.curves


def test_waiting_is_a_share_of_the_step_and_a_step_without_a_duration_has_none() -> None:
    keys = ("step", "train/data_wait_seconds", "train/step_seconds")
    records = [
        dict(zip(keys, row, strict=True)) for row in ((1, 0.5, 2.0), (2, 0.0, 4.0), (3, 1.0, 0.0))
    ]

    curve = read_history(records).curves[WAITING]

    assert np.array_equal(curve.values, [25.0, 0.0, math.nan], equal_nan=True)


def test_thinning_keeps_the_extremes_the_order_and_a_stretch_of_gaps() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[31_415], values[27_182] = 50.0, -50.0
    values[60_000:61_000] = math.nan

    thinned = thin(Curve(np.arange(100_000.0), values))

    assert len(thinned.values) <= MAX_POINTS
    assert (np.diff(thinned.steps) > 0).all()
    assert thinned.steps[np.nanargmax(thinned.values)] == 31_415
    assert thinned.steps[np.nanargmin(thinned.values)] == 27_182
    inside = (thinned.steps >= 60_000) & (thinned.steps < 61_000)
    assert inside.any()
    assert np.isnan(thinned.values[inside]).all()


def test_a_short_curve_is_not_thinned() -> None:
    curve = Curve(np.arange(float(MAX_POINTS)), np.zeros(MAX_POINTS))

    assert thin(curve) is curve


def test_smoothing_is_the_mean_of_the_window_and_leaves_gaps() -> None:
    values = np.random.default_rng(0).normal(size=300)  # a window of 7
    values[100] = math.nan

    smoothed = smooth(Curve(np.arange(300.0), values)).values

    assert smoothed[0] == values[0]
    assert smoothed[1] == pytest.approx(values[:3].mean())
    assert smoothed[200] == pytest.approx(values[197:204].mean())
    assert smoothed[299] == pytest.approx(values[296:].mean())
    assert np.isnan(smoothed[100])
    assert smoothed[101] == pytest.approx(np.nanmean(values[98:105]))


def test_smoothing_forgets_a_huge_value_once_it_has_left_the_window() -> None:
    values = np.full(300, 2.0)
    values[50] = 1e300

    smoothed = smooth(Curve(np.arange(300.0), values)).values

    assert smoothed[60] == 2.0


def test_a_gap_breaks_the_line_in_the_drawing() -> None:
    whole = losses([3.0 + math.sin(i) for i in range(15)])
    broken = losses([math.nan if i == 7 else 3.0 + math.sin(i) for i in range(15)])

    moves = [
        [line.count("M ") for line in polylines(draw_svg(LOSS, history))]
        for history in (whole, broken)
    ]

    assert moves == [[1], [2]]


def test_a_value_between_two_gaps_is_drawn_as_a_dot() -> None:
    values = [3.0 + math.sin(i) for i in range(100)]
    without = draw_svg(LOSS, losses(values))
    values[49] = values[51] = math.nan

    svg = draw_svg(LOSS, losses(values))

    assert without.count("<use") == 0
    # The smoothed line has its dot there too.
    assert svg.count("<use") == 2


def test_svg_takes_its_colours_from_the_page_and_needs_nothing_from_elsewhere() -> None:
    svg = draw_svg(LOSS, losses([3.0, 2.0, 1.0]))

    assert svg.startswith("<svg viewBox=")
    assert svg.endswith("</svg>")
    assert "http" not in svg
    assert "<style" not in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(COLORS)
    assert ">nats per token</text>" in svg
    assert ">step</text>" in svg


def test_drawings_on_one_page_share_no_ids() -> None:
    records = [
        {"step": s, "tokens": s, "train/loss": 5.0 / s, "validation/bits_per_byte": 2.0 / s}
        for s in range(1, 30)
    ]
    history = read_history(records)

    ids = [re.findall(r'\bid="([^"]*)"', draw_svg(plot, history)) for plot in history.curves]

    assert all(ids)
    assert len(set(ids[0]) & set(ids[1])) == 0


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)

    draw_svg(LOSS, losses([3.0, 2.0]))
    draw_png("demo", losses([3.0, 2.0]))

    assert dict(matplotlib.rcParams) == before


def test_tokens_stand_above_the_steps_that_reached_them() -> None:
    steep = [{"step": s, "tokens": 1_000_000 * s, "train/loss": 1.0} for s in range(1, 11)]

    with_tokens = draw_svg(LOSS, read_history(steep))
    without = draw_svg(LOSS, read_history([{**r, "tokens": None} for r in steep]))

    places = re.findall(r'x="([\d.]+)"[^>]*>(\w+)</text>', with_tokens)
    by_label = {label: float(x) for x, label in places}
    assert by_label["4M"] == pytest.approx(by_label["4"], abs=0.01)
    assert ">tokens</text>" in with_tokens
    assert ">tokens</text>" not in without


def test_the_first_fall_does_not_flatten_the_rest_and_a_late_spike_stays_in_view() -> None:
    values = [11.0, 9.0, *[3.0 - 0.001 * i for i in range(98)]]
    spiked = [*values[:60], 8.0, *values[61:]]

    heights = [
        [float(label) for label in re.findall(r">([\d.]+)</text>", draw_svg(plot, history))]
        for plot, history in ((LOSS, losses(values)), (LOSS, losses(spiked)))
    ]

    assert 8 not in heights[0]
    assert 3 in heights[0]
    assert 8 in heights[1]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="no step"),
        pytest.param([2.0], id="one step"),
        pytest.param([math.nan], id="one step that failed"),
        pytest.param([math.nan] * 50, id="no finite value"),
        pytest.param([0.0] * 50, id="zeros"),
        pytest.param([1e300, -1e300] * 30, id="huge values"),
        pytest.param([2.0] * 5000, id="a constant"),
    ],
)
def test_every_plot_draws_whatever_the_values(values: list[float]) -> None:
    keys = [plot.key for plot in PLOTS]
    records = [
        {"step": step, "tokens": step, "train/step_seconds": 1.0, **dict.fromkeys(keys, value)}
        for step, value in enumerate(values, start=1)
    ]
    history = read_history(records)

    drawings = [draw_svg(plot, history) for plot in PLOTS]

    assert all(drawing.endswith("</svg>") for drawing in drawings)
    assert draw_png("demo", history).startswith(b"\x89PNG")


def test_png_has_its_size_and_a_dollar_in_the_title_is_no_formula() -> None:
    png = draw_png("a$b_{$ / pretrain", losses([3.0, 2.0]))

    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (2000, 880)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (950, "950"), (20_000, "20k"), (2.5e6, "2.5M"), (3e9, "3B")],
)
def test_axes_have_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
