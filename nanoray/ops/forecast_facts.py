"""Everything that a forecast says, as JSON: from here card, page and grade are made."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nanoray.config import InputError
from nanoray.ops.core_link import core_link
from nanoray.ops.forecast_cost import Machine, best_depth, size_of
from nanoray.ops.forecast_trials import Trials
from nanoray.ops.scaling_fit import (
    LAW,
    BackTest,
    Fits,
    agreement,
    why_no_token_law,
)
from nanoray.ops.scaling_law import Law, Points, estimate, fit_law

Facts = dict[str, Any]  # Any: JSON

FAR = 10.0
"""Times the FLOPs of the largest trial beyond which a forecast is far outside what was measured."""


@dataclass(frozen=True)
class Basis:
    """What a forecast stands on."""

    trials: Trials
    data: str | None
    """What they were trained on; None if nobody knows."""
    fits: Fits
    law: Law
    """Of all trials; or, where those do not allow it, of the trials of one depth."""
    points: Points
    """The trials that this law is of."""
    back_test: BackTest | str
    interval: float


def law_for(depth: int, trials: Trials, fits: Fits) -> tuple[Law, Points]:
    """Give the law by which a depth is forecast, and the trials it is of.

    Raises:
        InputError: there is none; the text says what the sweep still allows.
    """
    if fits.law is not None:
        return fits.law, fits.points
    why_not: dict[int, str | None] = {}
    for measured in trials.depths:
        own = fits.points.take(fits.points.size == size_of(measured, trials.shape))
        why_not[measured] = why_no_token_law(own)
        if measured == depth and why_not[measured] is None:
            return fit_law(own, has_size=False), own
    possible = [f"--depth {measured}" for measured, why in why_not.items() if why is None]
    remedy = (
        f"What still works: {' or '.join(possible)}, by a law of tokens alone."
        if possible
        else why_not.get(depth) or "No depth has trials enough for a law of its own."
    )
    raise InputError(f"--depth {depth} cannot be forecast. {fits.impossible[LAW]} {remedy}")


def gather(basis: Basis, run: Facts, machine: Machine, budgets: dict[str, float]) -> Facts:
    """Make the forecast of a run.

    Args:
        basis: what it stands on.
        run: the run's plan, as `jobs/plan.py --json` gives it.
        machine: what it is computed on.
        budgets: label -> FLOPs for which the best depth is looked for.
    """
    law, shape, trials = basis.law, basis.trials.shape, basis.trials
    size = np.array([size_of(run["depth"], shape)])
    tokens = np.array([float(run["tokens"])])
    drawn = law.loss_draws(size, tokens, of_a_run=True)[:, 0]
    bits = estimate(float(law.loss(size, tokens)[0]), drawn, basis.interval)
    link = core_link(trials.used, basis.data)
    core = link if isinstance(link, str) else link.predict(bits.value, drawn, basis.interval)
    hours, dollars = machine.hours(run["total_flops"]), machine.dollars(run["total_flops"])
    memory = run["memory_per_gpu_bytes"]
    return {
        "depth": run["depth"],
        "shape": asdict(shape),
        "data": basis.data,
        "interval": basis.interval,
        "trials": {
            "used": [row.name for row in trials.used],
            "depths": trials.depths,
            "flops": [float(basis.points.flops.min()), float(basis.points.flops.max())],
            "left_out": trials.left_out,
        },
        "fits": fit_facts(basis),
        "run": {**run, "scaling_parameters": int(size[0])},
        "predicted": {
            "bits_per_byte": asdict(bits),
            "core": None if isinstance(core, str) else asdict(core),
            "core_source": core if isinstance(core, str) or isinstance(link, str) else link.source,
            "hours": asdict(hours),
            "dollars": dollars and asdict(dollars),
            "memory_per_gpu_bytes": memory and memory["total"],
            "device": machine.device,
            "num_workers": machine.num_workers,
            "speed": machine.source,
        },
        "best": {
            label: choice_facts(basis, machine, flops)
            for label, flops in budgets.items()
            if law.has_size
        },
        "back_test": back_test_facts(basis),
        "notes": [*trials.notes, *notes_on_reach(basis, run)],
    }


def choice_facts(basis: Basis, machine: Machine, flops: float) -> Facts:
    """Give the best depth for a budget, and what it takes."""
    choice = best_depth(basis.law, flops, basis.trials.shape, basis.interval)
    dollars = machine.dollars(flops)
    return {
        **asdict(choice),
        "depths": list(choice.depths),
        "hours": asdict(machine.hours(flops)),
        "dollars": dollars and asdict(dollars),
    }


def fit_facts(basis: Basis) -> Facts:
    """Give constants and exponents of what was fitted, and why the rest was not."""
    law, fits, interval = basis.law, basis.fits, basis.interval
    drawn = [law.named(constants) for constants in law.draws]
    constants = {
        name: asdict(estimate(value, np.array([one[name] for one in drawn]), interval))
        for name, value in law.named(law.constants).items()
    }
    same = agreement(fits, interval)
    return {
        "law": {
            "constants": constants,
            "has_size": law.has_size,
            "noise": law.noise,
            "draws": "trials" if law.is_resampled else "deviations",
            **(exponents_of_law(basis) if law.has_size else {}),
        },
        "isoflop": isoflop_facts(fits, interval),
        "agreement": same and {**asdict(same), "agrees": same.agrees},
        "impossible": fits.impossible,
    }


def exponents_of_law(basis: Basis) -> Facts:
    """Give the exponents of N*(C) and D*(C) over the measured budgets.

    Taken from their ends rather than as b/(a+b), which holds where C is 6 N D, without attention.
    """
    low, high = float(basis.points.flops.min()), float(basis.points.flops.max())
    budgets = np.array([low, max(high, 10 * low)])
    cost = basis.fits.cost
    span = np.log(budgets[1] / budgets[0])

    size, drawn = basis.law.best_size(budgets, cost), basis.law.best_size_draws(budgets, cost)
    found = {
        "size_exponent": (size, drawn),
        "tokens_exponent": (budgets / cost(size), budgets / cost(drawn)),
    }
    return {
        name: asdict(
            estimate(
                float(np.log(best[1] / best[0]) / span),
                np.log(draws[:, 1] / draws[:, 0]) / span,
                basis.interval,
            )
        )
        for name, (best, draws) in found.items()
    }


def isoflop_facts(fits: Fits, interval: float) -> Facts | None:
    """Give minima and exponents of the parabolas."""
    found = fits.isoflops
    if found is None:
        return None
    facts: Facts = {
        "budgets": [curve.budget for curve in found.curves],
        "is_interpolated": found.curves[0].is_interpolated,
        "best_size": [
            asdict(estimate(value, found.size_draws[:, i], interval))
            for i, value in enumerate(found.size.tolist())
        ],
        "left_out": found.left_out,
    }
    laws = {"size_exponent": found.size_law, "tokens_exponent": found.tokens_law}
    for name, law in laws.items():
        known = law.exponent is not None
        facts[name] = (
            asdict(estimate(law.exponent or 0.0, law.draws[:, 1], interval)) if known else None
        )
    return facts


def back_test_facts(basis: Basis) -> Facts:
    """Give what the largest budget would have been taken for, and what it was."""
    test = basis.back_test
    if isinstance(test, str):
        return {"why_not": test}
    rows = rows_of(basis)
    held = [row for row, out in zip(rows, test.left_out.tolist(), strict=True) if out]
    return {
        "factor": test.factor,
        "num_inside": test.num_inside,
        "worst": test.worst,
        "trials": [
            {
                "name": row.name,
                "depth": row.depth,
                "tokens_per_param": row.tokens_per_param,
                "measured": float(measured),
                "predicted": asdict(predicted),
                "inside": predicted.holds(float(measured)),
            }
            for row, measured, predicted in zip(held, test.measured, test.predicted, strict=True)
        ],
    }


def rows_of(basis: Basis) -> list[Any]:  # Any: TrialRow, whose fields back_test_facts writes out
    """Give the trials that the law is of, in the order of its points."""
    if basis.law.has_size:
        return list(basis.trials.used)
    size = basis.points.size[0]
    return [row for row in basis.trials.used if row.scaling_parameters == size]


def notes_on_reach(basis: Basis, run: Facts) -> list[str]:
    """Say how far the forecast lies outside what was measured."""
    notes = []
    factor = run["total_flops"] / float(basis.points.flops.max())
    if factor > 1:
        far = (
            " This is far outside the measured range: the interval knows nothing of what"
            if (factor > FAR)
            else " The interval knows nothing of what"
        )
        notes.append(
            f"The run takes {factor:,.3g} times the FLOPs of the largest trial.{far} changes on "
            "the way."
        )
    depths = basis.trials.depths
    if not depths[0] <= run["depth"] <= depths[-1]:
        notes.append(f"Depths {depths[0]} to {depths[-1]} were tried, not {run['depth']}.")
    ratios = [row.tokens_per_param for row in rows_of(basis)]
    ratio = run["tokens_per_param"]
    if not 0.97 * min(ratios) <= ratio <= 1.03 * max(ratios):
        notes.append(f"Ratios {min(ratios):.3g} to {max(ratios):.3g} were tried, not {ratio:.3g}.")
    if isinstance(basis.back_test, BackTest) and basis.back_test.num_inside < 0.5 * len(
        basis.back_test.predicted
    ):
        notes.append(
            "The back-test failed: most of the largest budget lay outside its intervals. "
            "Do not trust this one's."
        )
    return notes
