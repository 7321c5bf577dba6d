"""The card of a forecast, and its page."""

import copy
import re

import pytest

from nanoray.ops.forecast_card import as_html, as_text, recommendation, sections, span, time_of
from nanoray.ops.forecast_facts import Facts
from tests.ops.synthetic_sweep import trials
from tests.ops.test_forecast_facts import facts_of


@pytest.fixture(scope="module")
def made() -> Facts:
    rows = trials([4, 5, 6, 7, 8], ratios=[5, 10, 20, 40])
    facts, _ = facts_of(rows, 10, 20)
    facts["trials"]["left_out"] = {"d9-bad": "diverged: <nan>"}
    facts |= {"title": "Forecast of depth 10", "made_at": "2026-11-28 12:00:00"}
    return {**facts, "recommendation": recommendation(facts)}


def test_the_card_has_everything_that_was_asked(made: Facts) -> None:
    text = as_text(made, "runs/s/forecast.html")

    bits = made["predicted"]["bits_per_byte"]
    assert f"{bits['value']:.4f} ({bits['low']:.4f} to {bits['high']:.4f})" in text
    for part in (
        "CORE",
        "time",
        "memory",
        "for the same compute",
        "trials inside the interval",
        "L = E + A/N^alpha + B/D^beta: E 0.",
        "best size by law",
        "nanochat's rule",
        "left out: d9-bad",
        "diverged: <nan>",
        "page: runs/s/forecast.html",
    ):
        assert part in text


def test_the_recommendation_names_depth_ratio_and_price(made: Facts) -> None:
    facts = copy.deepcopy(made)
    best = facts["best"]["the same compute"]
    best |= {"depth": 13, "depths": (11, 16), "tokens_per_param": 4.75}
    best["dollars"] = {"value": 512.0, "low": 500.0, "high": 530.0}
    best["bits_per_byte"]["value"], facts["predicted"]["bits_per_byte"]["value"] = 0.67, 0.68

    assert recommendation(facts) == (
        "Train d13 at ratio 4.75 for $512 (d11 to d16 cannot be told apart): 0.6700 bits per byte "
        "where d10 gives 0.6800."
    )


def test_without_a_best_depth_nothing_is_recommended(made: Facts) -> None:
    at_end = copy.deepcopy(made)
    at_end["best"]["the same compute"]["is_at_end"] = True

    assert "the law has no best one" in recommendation(at_end)
    assert "the sweep knows of one depth only" in recommendation({**made, "best": {}})


def test_the_page_needs_nothing_else(made: Facts) -> None:
    page = as_html(made, {"A & B": "<svg></svg>"})

    assert "<script" not in page
    assert not re.search(r"(src|href)=", page)
    assert "prefers-color-scheme: dark" in page
    assert "diverged: &lt;nan&gt;" in page
    assert "<strong>A &amp; B</strong>" in page
    for heading in sections(made):
        assert f"<h2>{heading}</h2>" in page


def test_a_number_without_an_interval_stands_alone() -> None:
    assert span({"value": 2.0, "low": 2.0, "high": 2.0}, ".1f", "$") == "$2.0"
    assert span({"value": 2.0, "low": 1.0, "high": 3.0}, ".0f") == "2 (1 to 3)"
    assert time_of({"value": 93.7, "low": 90.0, "high": 100.0}) == "3.9 days (3.8 days to 4.2 days)"
