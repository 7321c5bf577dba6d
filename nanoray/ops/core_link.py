"""From bits per byte to CORE: a line through trials that measured both, or published runs."""

from dataclasses import dataclass

import numpy as np

from nanoray.ops.scaling_law import Array, Estimate, estimate
from nanoray.ops.trial_table import TrialRow

LEAST_TRIALS = 4
PUBLISHED = (
    (0.7045, 0.3382),  # d34, ratio 40: its model card
    (0.74833, 0.2585),  # d24, ratio 12 (348fbb3)
    (0.74504, 0.2578),  # d26, ratio 8.5 (a67eba3)
    (0.74645, 0.2602),  # d26, ratio 8.25 (2c062aa)
)
"""Bits per byte and CORE of nanochat runs on FineWeb-Edu: d34's card, and the leaderboard until
February 2026. Later entries are trained and validated on another text."""
PUBLISHED_DATA = "fineweb-edu"
PUBLISHED_NOISE = 0.0053
"""Standard deviation of CORE over seven identical runs (nanochat, March 2026)."""
PUBLISHED_REACH = 0.02
"""Bits per byte beyond the published runs up to which the line is believed: it is a chord of a
curve that ends flat at CORE 0."""


@dataclass(frozen=True)
class CoreLink:
    """A line, and where it is believed."""

    source: str
    """One sentence for the card."""
    bits: Array
    """(m,)"""
    core: Array
    """(m,)"""
    noise: float
    """Standard deviation of CORE around the line."""
    freedom: int | None
    """Degrees of freedom by which the noise is known; None: well."""
    reach: tuple[float, float]
    """Least and greatest bits per byte."""

    def predict(self, bits: float, drawn_bits: Array, interval: float) -> Estimate | str:
        """Give CORE of a run, or say why not.

        Args:
            bits: its bits per byte.
            drawn_bits: draws of these, (R,).
            interval: share of the draws that the interval holds.
        """
        low, high = self.reach
        if not low <= bits <= high:
            return (
                f"No link is known at {bits:.4f} bits per byte. {self.source} It is believed from "
                f"{low:.4f} to {high:.4f}."
            )
        rng = np.random.default_rng(4)
        solver = np.linalg.pinv(np.vander(self.bits, 2))
        noise = np.full(len(drawn_bits), self.noise)
        if self.freedom is not None:
            noise *= np.sqrt(self.freedom / rng.chisquare(self.freedom, len(drawn_bits)))
        deviations = rng.standard_normal((len(drawn_bits), len(self.core) + 1)) * noise[:, None]
        lines = (self.core + deviations[:, :-1]) @ solver.T
        drawn = lines[:, 0] * drawn_bits + lines[:, 1] + deviations[:, -1]
        slope, offset = (solver @ self.core).tolist()
        return estimate(slope * bits + offset, drawn, interval)


def core_link(trials: list[TrialRow], data: str | None) -> CoreLink | str:
    """Take the trials' own CORE, or else published runs on the same text; or say why neither."""
    measured = [row for row in trials if row.core is not None and row.bits_per_byte is not None]
    full = [row for row in measured if not row.is_core_sample]
    chosen = full if len(full) >= LEAST_TRIALS else measured
    if len(chosen) >= LEAST_TRIALS:
        return link_of_trials(chosen, is_sample=any(row.is_core_sample for row in chosen))
    few = f"{len(measured)} of the trials measured CORE, and a line needs {LEAST_TRIALS}"
    if data != PUBLISHED_DATA:
        return (
            f"No link from bits per byte to CORE is known: {few}; published runs are on "
            f"{PUBLISHED_DATA}, whose bits per byte are no measure of {data or 'other texts'}."
        )
    bits, core = np.array(PUBLISHED).T
    reach = (float(bits.min()) - PUBLISHED_REACH, float(bits.max()) + PUBLISHED_REACH)
    source = (
        "A line through four published nanochat runs on FineWeb-Edu (d34's model card; leaderboard "
        "of January and February 2026)."
    )
    return CoreLink(source, bits, core, PUBLISHED_NOISE, None, reach)


def link_of_trials(rows: list[TrialRow], *, is_sample: bool) -> CoreLink:
    """Draw a line through the CORE of trials; it is believed as far again as they reach."""
    bits = np.array([row.bits_per_byte for row in rows], dtype=np.float64)
    core = np.array([row.core for row in rows], dtype=np.float64)
    powers = np.vander(bits, 2)
    left = core - powers @ (np.linalg.pinv(powers) @ core)
    freedom = len(rows) - 2
    noise = float(np.sqrt((left**2).sum() / freedom))
    some = ", measured on some of the questions" if is_sample else ""
    source = f"A line through {len(rows)} trials of this sweep{some}."
    span = float(np.ptp(bits))
    reach = (float(bits.min()) - span, float(bits.max()) + span)
    return CoreLink(source, bits, core, noise, freedom, reach)
