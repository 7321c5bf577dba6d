"""From bits per byte to CORE."""

import dataclasses

import numpy as np
import pytest

from nanoray.ops.core_link import PUBLISHED, CoreLink, core_link
from nanoray.ops.scaling_law import Estimate
from nanoray.ops.trial_table import TrialRow
from tests.ops.synthetic_sweep import trials

DRAWS = np.random.default_rng(0).normal(0.71, 0.003, 2000)


def with_core(noise: float, *, is_sample: bool = False) -> list[TrialRow]:
    """Give trials whose CORE falls along a line."""
    rng = np.random.default_rng(0)
    return [
        dataclasses.replace(
            row,
            core=1.0 - row.bits_per_byte + noise * rng.standard_normal(),
            is_core_sample=is_sample,
        )
        for row in trials([4, 5, 6], ratios=[5, 10, 20])
        if row.bits_per_byte is not None
    ]


def test_trials_that_measured_core_make_the_line() -> None:
    link = core_link(with_core(0.001), data=None)

    assert isinstance(link, CoreLink)
    assert "9 trials of this sweep" in link.source
    found = link.predict(0.71, DRAWS, 0.9)
    assert isinstance(found, Estimate)
    assert found.value == pytest.approx(0.29, abs=0.01)
    assert found.holds(0.29)


def test_a_noisier_line_gives_a_wider_interval() -> None:
    quiet, noisy = (
        link.predict(0.71, DRAWS, 0.9)
        for link in (core_link(with_core(noise), None) for noise in (0.001, 0.02))
        if isinstance(link, CoreLink)
    )

    assert isinstance(quiet, Estimate)
    assert isinstance(noisy, Estimate)
    assert noisy.high - noisy.low > 2 * (quiet.high - quiet.low)


def test_core_of_some_questions_is_said_to_be_so() -> None:
    link = core_link(with_core(0.001, is_sample=True), data=None)

    assert isinstance(link, CoreLink)
    assert "measured on some of the questions" in link.source


def test_published_runs_are_taken_for_the_same_text_only() -> None:
    rows = trials([4, 5, 6], ratios=[5, 10])

    same, other = core_link(rows, "fineweb-edu"), core_link(rows, "climbmix")

    assert isinstance(same, CoreLink)
    assert "four published nanochat runs" in same.source
    assert isinstance(other, str)
    assert "0 of the trials measured CORE, and a line needs 4" in other
    assert "no measure of climbmix" in other


def test_the_line_meets_d34_and_ends_where_nothing_was_published() -> None:
    link = core_link(trials([4], ratios=[5]), "fineweb-edu")
    assert isinstance(link, CoreLink)

    near, far = link.predict(PUBLISHED[0][0], DRAWS, 0.9), link.predict(0.9, DRAWS, 0.9)

    assert isinstance(near, Estimate)
    assert near.value == pytest.approx(0.3382, abs=0.001)
    assert far == (
        f"No link is known at 0.9000 bits per byte. {link.source} It is believed from 0.6845 to "
        "0.7683."
    )
