"""The pictures of a forecast."""

import io
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.image import imread

from nanoray.ops.forecast_facts import Basis, Facts
from nanoray.ops.forecast_plots import around, draw_png, draw_svgs, panels, power, sides
from nanoray.plots import COLORS
from tests.ops.synthetic_sweep import trials
from tests.ops.test_forecast_facts import facts_of


@pytest.fixture(scope="module")
def made() -> tuple[Facts, Basis]:
    return facts_of(trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40]), 10, 20)


def test_every_picture_has_axes_with_units(made: tuple[Facts, Basis]) -> None:
    drawn = draw_svgs(*made)

    assert len(drawn) >= 5
    for svg in drawn.values():
        # A page knows the prefix by itself.
        ET.fromstring(svg.replace("<svg", '<svg xmlns:xlink="http://www.w3.org/1999/xlink"', 1))
        units = ("FLOPs", "tokens", "weights that multiply", "bits per byte")
        assert sum(unit in svg for unit in units) >= 1
    text = "".join(drawn.values())
    for name, (light, _) in COLORS.items():
        assert light not in text, name


def test_the_png_has_a_picture_in_each_place(made: tuple[Facts, Basis]) -> None:
    picture = imread(io.BytesIO(draw_png("A $title", *made)))

    assert picture.shape[:2] == (1344, 2400)
    for rows in np.array_split(picture[..., :3], 2):
        for part in np.array_split(rows, 3, axis=1):
            assert (part.min(axis=-1) < 0.9).mean() > 0.004


def test_one_depth_has_fewer_pictures() -> None:
    facts, basis = facts_of(trials([6], ratios=[5, 10, 20, 40, 80]), 6, 120)

    chosen = list(panels(basis))

    assert chosen == [
        "Loss against tokens, by depth",
        "Loss against compute",
        "Back-test: the largest budget, predicted",
    ]
    assert len(draw_png("one", facts, basis)) > 10_000


def test_without_parabolas_the_depths_at_the_runs_compute_are_shown() -> None:
    facts, basis = facts_of(trials([4, 8, 14], ratios=[5, 10, 20]), 10, 20)

    drawn = draw_svgs(facts, basis)

    assert "Sizes at equal FLOPs, and the best of each" not in drawn
    assert "asked: d10" in drawn["Depths at the run's compute"]


def test_numbers_of_flops_are_short() -> None:
    assert [power(value) for value in (1e18, 2.15e18, 5e9)] == ["1e18", "2.15e18", "5e9"]


def test_an_axis_holds_its_values_with_room() -> None:
    assert around([1.0, 2.0]) == pytest.approx((0.92, 2.08))
    assert around([1.0]) == pytest.approx((0.99, 1.01))


def test_an_interval_beside_its_value_reaches_to_one_side_only() -> None:
    assert sides({"value": 1.0, "low": 2.0, "high": 3.0}).tolist() == [[0.0], [2.0]]
