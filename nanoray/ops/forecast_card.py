"""A forecast for a person: the card that is printed, and the page."""

import html
from typing import Any

from nanoray.plots import short_number
from nanoray.progress import duration
from nanoray.report import page_of, shown, table

Facts = dict[str, Any]  # Any: JSON
Sections = dict[str, dict[str, str]]
"""Heading -> label -> value."""

SAME = "the same compute"
"""Label of the budget that the run itself takes."""
COUNTING = (
    "N counts the weights that multiply: matrices and unembedding (nanochat's rule). D counts "
    "training tokens, C the FLOPs of training: 6 N D, and attention. The ratio is tokens per "
    "parameter, all parameters counted, as in --tokens-per-param."
)


def recommendation(facts: Facts) -> str:
    """Say in one sentence what to train."""
    if not facts["best"]:
        return (
            "No depth can be recommended: the sweep knows of one depth only. "
            "Sweep three or more, then ask again."
        )
    label, best = list(facts["best"].items())[-1]
    if best["is_at_end"]:
        return (
            f"No depth can be recommended for {label}: the law has no best one among those looked "
            "at. Sweep more depths and ratios."
        )
    price = best["dollars"]
    cost = f"for ${price['value']:,.0f}" if price else f"in {time_of(best['hours'])}"
    low, high = best["depths"]
    sure = "" if low == high else f" (d{low} to d{high} cannot be told apart)"
    found, asked = best["bits_per_byte"]["value"], facts["predicted"]["bits_per_byte"]["value"]
    said = f"Train d{best['depth']} at ratio {best['tokens_per_param']:.3g} {cost}{sure}"
    if label != SAME:
        return f"{said}: {found:.4f} bits per byte."
    if best["depth"] == facts["depth"]:
        return f"{said}: what was asked for is the best there is for this compute."
    return f"{said}: {found:.4f} bits per byte where d{facts['depth']} gives {asked:.4f}."


def sections(facts: Facts) -> Sections:
    """Give everything that the card says, in the order in which a reader asks."""
    return {
        "Forecast": predicted_rows(facts),
        "Best depth and ratio": best_rows(facts),
        "Would it have been right": back_test_rows(facts),
        "Fits": fit_rows(facts),
        "Trials": trial_rows(facts),
    }


def predicted_rows(facts: Facts) -> dict[str, str]:
    """Write what the run will be."""
    run, told = facts["run"], facts["predicted"]
    workers, device = told["num_workers"], told["device"]
    kind = "CPU workers" if device == "cpu" else device
    memory = told["memory_per_gpu_bytes"]
    core = told["core"]
    rows = {
        "model": f"depth {facts['depth']}: {run['parameters']:,} parameters, of which "
        f"{run['scaling_parameters']:,} multiply (N)",
        "length": f"{run['tokens']:,} tokens, {run['tokens_per_param']:.4g} per parameter, "
        f"{run['total_flops']:.4g} FLOPs",
        "bits per byte": span(told["bits_per_byte"], ".4f"),
        "CORE": f"{span(core, '.4f')}. {told['core_source']}" if core else told["core_source"],
        "time": f"{time_of(told['hours'])} on {workers} {kind}, {told['speed']}",
    }
    if told["dollars"]:
        rows["cost"] = span(told["dollars"], ",.0f", "$")
    rows["memory"] = (
        f"{memory / 2**30:.1f} GiB per GPU at the peak of a step, estimated"
        if memory
        else "not known for CPUs"
    )
    for number, note in enumerate(facts["notes"]):
        rows["note" if not number else f"note {number + 1}"] = note
    return rows


def best_rows(facts: Facts) -> dict[str, str]:
    """Write what budgets are best spent on."""
    rows = {}
    for label, best in facts["best"].items():
        low, high = best["depths"]
        price = f", {span(best['dollars'], ',.0f', '$')}" if best["dollars"] else ""
        rows[f"for {label}"] = (
            f"d{best['depth']} (d{low} to d{high}) at ratio {best['tokens_per_param']:.3g}, "
            f"{short(best['tokens'])} tokens, {best['flops']:.3g} FLOPs: "
            f"{span(best['bits_per_byte'], '.4f')} bits per byte, {time_of(best['hours'])}{price}"
        )
    return {**rows, "so": facts["recommendation"]}


def back_test_rows(facts: Facts) -> dict[str, str]:
    """Write the back-test."""
    test = facts["back_test"]
    if "why_not" in test:
        return {"back-test": test["why_not"]}
    count = len(test["trials"])
    rows = {
        "back-test": f"The law without the largest budget, x {test['factor']:.3g} in FLOPs, "
        f"predicted {test['num_inside']} of {count} trials inside the interval; the worst is "
        f"{100 * test['worst']:.2f} % off."
    }
    for trial in test["trials"]:
        rows[trial["name"]] = (
            f"measured {trial['measured']:.4f}, predicted {span(trial['predicted'], '.4f')}: "
            f"{'inside' if trial['inside'] else 'OUTSIDE'}"
        )
    return rows


def fit_rows(facts: Facts) -> dict[str, str]:
    """Write what was fitted, and what could not be."""
    fits = facts["fits"]
    law, isoflop, same = fits["law"], fits["isoflop"], fits["agreement"]
    form = "E + A/N^alpha + B/D^beta" if law["has_size"] else "E + B/D^beta, of this depth alone"
    constants = ", ".join(
        f"{name} {span(value, '.4g')}" for name, value in law["constants"].items()
    )
    drawn = {
        "trials": "drawn from the trials, with replacement",
        "deviations": "drawn from the deviations of the trials, which are too few to draw from",
    }
    rows = {
        "law": f"L = {form}: {constants}",
        "noise": f"a trial lies {100 * law['noise']:.2f} % beside the law (standard deviation)",
        "intervals": f"{100 * facts['interval']:.0f} %, {drawn[law['draws']]}",
    }
    for name, found in (("law", law), ("isoFLOP", isoflop)):
        if found and found.get("size_exponent"):
            rows[f"best size by {name}"] = (
                f"N ~ C^{span(found['size_exponent'], '.3f')}, "
                f"D ~ C^{span(found['tokens_exponent'], '.3f')}"
            )
    if isoflop:
        made = "interpolated along tokens" if isoflop["is_interpolated"] else "of equal FLOPs"
        rows["isoFLOP"] = f"{len(isoflop['budgets'])} budgets, {made}" + "".join(
            f"; left out: {why}" for why in isoflop["left_out"]
        )
    if same:
        said = "agree" if same["agrees"] else "DO NOT AGREE"
        rows["both methods"] = (
            f"{said} at {same['budget']:.3g} FLOPs: isoFLOP's best size is "
            f"{span(same['ratio'], '.3g')} times the law's ({span(same['by_law'], '.3g')})"
        )
    for name, why in fits["impossible"].items():
        rows[f"no {'isoFLOP' if name == 'isoflop' else name}"] = why
    rows["counting"] = COUNTING
    return rows


def trial_rows(facts: Facts) -> dict[str, str]:
    """Write which trials count, and by name which do not."""
    trials = facts["trials"]
    low, high = trials["flops"]
    rows = {
        "used": f"{len(trials['used'])} trials of depth "
        f"{', '.join(map(str, trials['depths']))}; {low:.3g} to {high:.3g} FLOPs; "
        f"{facts['shape']['vocab_size']:,} ids, rows of {facts['shape']['max_seq_len']:,} tokens; "
        f"trained on {facts['data'] or 'data that no config tells of'}"
    }
    for name, why in trials["left_out"].items():
        rows[f"left out: {name}"] = why
    return rows


def as_text(facts: Facts, address: str) -> str:
    """Write the card for a terminal."""
    lines = [f"{facts['title']}\n"]
    for heading, rows in sections(facts).items():
        lines.append(f"{heading}")
        lines += [f"  {label:<22} {value}" for label, value in rows.items()]
        lines.append("")
    return "\n".join([*lines, f"{facts['recommendation']}\npage: {address}"])


def as_html(facts: Facts, pictures: dict[str, str]) -> str:
    """Give the page: no script, no request.

    Args:
        facts: the forecast.
        pictures: title -> <svg> element.
    """
    figures = "\n".join(
        f'<figure class="card"><figcaption><strong>{html.escape(title)}</strong></figcaption>\n'
        f"{picture}</figure>"
        for title, picture in pictures.items()
    )
    told = sections(facts)
    forecast = told.pop("Forecast")
    content = (
        f"<blockquote>{shown(facts['recommendation'])}</blockquote>\n"
        + section("Forecast", table(forecast))
        + section("Plots", f'<div class="plots">{figures}</div>')
        + "".join(section(heading, table(rows)) for heading, rows in told.items())
    )
    covered = shown(f"Made {facts['made_at']} UTC from {len(facts['trials']['used'])} trials.")
    return page_of(facts["title"], covered, content)


def section(heading: str, content: str) -> str:
    """Give a section of the page."""
    return f"<section><h2>{heading}</h2>\n{content}\n</section>\n"


def span(estimate: Facts, form: str, unit: str = "") -> str:
    """Write an estimate with its interval."""
    value, low, high = (f"{unit}{estimate[key]:{form}}" for key in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def time_of(hours: Facts) -> str:
    """Write a time with its interval."""
    value, low, high = (duration(3600 * hours[key]) for key in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def short(value: float) -> str:
    """Write a large number to three digits."""
    return short_number(float(f"{value:.3g}"))
