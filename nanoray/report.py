"""The report of a stage: one HTML page that needs nothing else, and a picture of its loss.

The page is made to be mailed and archived: it makes no request and runs no script, and shows
neither credentials nor the names of users and hosts.
"""

import dataclasses
import datetime
import html
import json
import logging
import os
import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import psutil

from nanoray import __version__
from nanoray.credentials import without_secrets
from nanoray.goodput import CATEGORIES, read_account
from nanoray.metrics import Records, read_from_before, read_metrics
from nanoray.plots import (
    COLORS,
    MIN_SMOOTHED,
    PLOTS,
    Curve,
    History,
    Plot,
    draw_png,
    draw_svg,
    read_history,
    smoothing_width,
)
from nanoray.progress import duration
from nanoray.report_card import Card, read_card
from nanoray.storage import StageFolder, read_json, write_file, write_json

logger = logging.getLogger(__name__)

SECRET_NAMES = re.compile(
    r"secret|password|credential|(api|access|private)_?key|token$", re.IGNORECASE
)
COMMAND_SECONDS = 10
"""How long git or nvidia-smi may take: the driver of a broken GPU answers never."""

STYLE = """
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 56px }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em }
h2 { margin: 44px 0 14px; font-size: 1.2rem; letter-spacing: -0.01em }
h1, th, td, pre, blockquote { overflow-wrap: anywhere }
p { margin: 6px 0 }
.quiet, footer { color: var(--axis); font-size: .9rem }
.card, pre, blockquote, .tiles tr {
  background: var(--card); border: 1px solid var(--grid); border-radius: 10px }
.card { padding: 4px 16px }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 7px 0; text-align: left; vertical-align: top }
th { width: 32%; padding-right: 16px; font-weight: 500; color: var(--axis) }
.scores th + th, .scores td { width: auto; padding-right: 12px; white-space: nowrap }
tr + tr > * { border-top: 1px solid var(--grid) }
.tiles table, .tiles tr, .tiles th, .tiles td { display: block }
.bar { display: flex; height: 22px; margin: 0 0 12px; border-radius: 6px; overflow: hidden }
.tiles tbody {
  display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)) }
.tiles tr { padding: 12px 14px }
.tiles th, .tiles td { width: auto; padding: 0; border: 0 }
.tiles th { font-size: .82rem }
.tiles td { font-size: 1.2rem; font-weight: 600; line-height: 1.35 }
.tiles .long { grid-column: span 2 }
.tiles .long td { font-size: .87rem; font-weight: 500 }
.plots { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)) }
figure.card { margin: 0; padding: 14px 14px 8px; min-width: 0 }
figcaption { margin-bottom: 6px; font-size: .85rem; color: var(--axis) }
figcaption strong { display: block; font-size: 1rem; color: var(--ink) }
svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif }
svg * { stroke-linejoin: round }
pre, blockquote { padding: 14px 16px; white-space: pre-wrap;
  font: .87rem/1.55 ui-monospace, Menlo, Consolas, monospace }
pre { margin: 0 }
blockquote { margin: 0 0 12px; border-left: 3px solid var(--line) }
blockquote b { color: var(--line) }
footer { margin-top: 44px }
@media print { figure, tr, blockquote { break-inside: avoid } }
"""
LONGEST_IN_TILE = 24
"""Characters."""

PAGE_COLORS = {"page": ("#f6f7f9", "#12151a"), "card": ("#ffffff", "#1a1e25"), **COLORS}


@dataclass(frozen=True)
class ReportFacts:
    """What the caller knows of a run beyond its files. All of it is shown as plain text."""

    title: str
    summary: dict[str, str]
    """Label -> value, the first thing a reader sees: parameters, tokens, final bits per byte."""
    derivation: dict[str, str]
    """Label -> value with its derivation: what followed from `--depth`."""
    resume_command: str
    """The command that goes on with the run, or repeats it; empty if nobody typed one."""
    samples: list[tuple[str, str]]
    """Prompts, each with the model's continuation."""


def write_report(folder: StageFolder, facts: ReportFacts) -> None:
    """Write report.html and loss.png of a stage, and report.json, to write them anew from."""
    kept = dataclasses.replace(facts, resume_command=without_secrets(facts.resume_command))
    write_json(folder.fs, folder.path("report.json"), dataclasses.asdict(kept))
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    history = read_history(read_from_before(folder))
    config = folder.read_config() or {}
    covered = steps_recorded(records)
    spent = read_account(folder).seconds
    card = read_card(folder.run)
    page = page_of(facts.title, covered, sections(history, config, facts, spent, card))
    # A model may write half of a surrogate pair, which UTF-8 has no bytes for.
    write_file(folder.fs, folder.path("report.html"), page.encode(errors="replace"))
    write_file(folder.fs, folder.path("loss.png"), draw_png(facts.title, history))
    logger.info("wrote %s/report.html", folder)


def read_facts(folder: StageFolder) -> ReportFacts | None:
    """Read what the last report of a stage was written from; None where there is none."""
    saved = read_json(folder.fs, folder.path("report.json"))
    if saved is None:
        return None
    values = {f.name: saved[f.name] for f in dataclasses.fields(ReportFacts)}
    samples = [(str(prompt), str(text)) for prompt, text in values.pop("samples")]
    return ReportFacts(**values, samples=samples)


def sections(
    history: History,
    config: dict[str, Any],  # Any: JSON
    facts: ReportFacts,
    spent: dict[str, float],
    card: Card | None,
) -> str:
    """Give the page's sections, in the order in which a reader asks."""
    settings = {
        name: setting(name, value) for name, value in config.items() if name != "format_version"
    }
    samples = "\n".join(
        f"<blockquote><b>{html.escape(prompt)}</b>{html.escape(text)}</blockquote>"
        for prompt, text in facts.samples
    )
    command = shown(facts.resume_command)
    contents = {
        "Summary": table(facts.summary, "tiles"),
        "Report card": card.to_html() if card else "",
        "Curves": curves(history),
        "Where the time went": time_spent(spent),
        "Samples": samples and f'<p class="quiet">Prompts are bold.</p>\n{samples}',
        "Resume or repeat": command and f"<pre>{command}</pre>",
        "What was decided, and how": table(facts.derivation),
        "Settings": table(settings),
        "Environment": table(environment()),
    }
    return "".join(
        f"<section><h2>{heading}</h2>\n{content}\n</section>\n"
        for heading, content in contents.items()
        if content
    )


def time_spent(spent: dict[str, float]) -> str:
    """Give a bar and a table of the seconds in each category; nothing where there are none."""
    total = sum(spent.values())
    if not total:
        return ""
    shares = {name: seconds / total for name, seconds in spent.items() if seconds > 0}
    # One colour in steps, so that the bar can be read in both schemes and without colours.
    parts = "".join(
        f'<i style="width:{100 * share:.3f}%;background:var(--line);'
        f'opacity:{1 - 0.85 * number / max(1, len(shares) - 1):.2f}" '
        f'title="{html.escape(CATEGORIES[name])}"></i>'
        for number, (name, share) in enumerate(shares.items())
    )
    rows = {
        CATEGORIES[name]: f"{100 * share:.1f} %, {duration(spent[name])}"
        for name, share in shares.items()
    }
    return f'<div class="bar">{parts}</div>{table({**rows, "all": duration(total)})}'


def page_of(title: str, covered: str, content: str) -> str:
    """Give the whole page around its sections."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{shown(title)}</title>
<style>{color_rules()}{STYLE}</style>
</head>
<body>
<main>
<header><h1>{shown(title)}</h1><p class="quiet">{covered}</p></header>
{content}<footer>Written by nanoray {__version__}</footer>
</main>
</body>
</html>
"""


def color_rules() -> str:
    """Give the CSS variables of both colour schemes."""
    light, dark = (
        "; ".join(f"--{name}: {pair[i]}" for name, pair in PAGE_COLORS.items()) for i in range(2)
    )
    return f":root {{ {light} }} @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"


def table(rows: dict[str, str], look: str = "card") -> str:
    """Give a table of labels and values; nothing where there are none.

    The roles are spelled out because browsers forget them when CSS lays a table out as tiles.
    """
    cells = "\n".join(
        f'<tr role="row"{long_row(value)}><th scope="row" role="rowheader">{shown(label)}</th>'
        f'<td role="cell">{shown(value)}</td></tr>'
        for label, value in rows.items()
    )
    whole = f'<table role="table"><tbody role="rowgroup">\n{cells}\n</tbody></table>'
    return f'<div class="{look}">{whole}</div>' if rows else ""


def long_row(value: str) -> str:
    """Give the class of a row whose value is too long for the large type of a tile."""
    return ' class="long"' if len(value) > LONGEST_IN_TILE else ""


def shown(text: str) -> str:
    """Make text safe to show: no credentials of addresses, no user's name, no markup."""
    text = without_secrets(text)
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"(?<![^\s\"'=]){re.escape(home)}(?=/|\s|$)", "~", text)
    return html.escape(text)


def setting(name: str, value: Any) -> str:  # Any: JSON
    """Write a config value as a reader expects it."""
    if value is None:
        return "not set"
    if isinstance(value, str):
        return "***" if SECRET_NAMES.search(name) else value
    return json.dumps(value)


def steps_recorded(records: Records) -> str:
    """Say which steps the metrics cover."""
    if not records:
        return "No step was recorded."
    first, last, ended = records[0]["step"], records[-1]["step"], records[-1].get("time")
    are = f"Steps {first:,} to {last:,} are" if last > first else f"Step {last:,} is"
    if ended is None:
        return f"{are} recorded."
    when = datetime.datetime.fromtimestamp(ended, datetime.UTC).strftime("%Y-%m-%d at %H:%M")
    return f"{are} recorded, the last on {when} UTC."


def curves(history: History) -> str:
    """Give all plots that have values, and a line for what is missing."""
    figures = "\n".join(
        f'<figure class="card"><figcaption>{caption(plot, curve)}</figcaption>\n'
        f"{draw_svg(plot, history)}</figure>"
        for plot, curve in history.curves.items()
    )
    validated = any(plot.key.startswith("validation/") for plot in history.curves)
    left_out = [
        plot
        for plot in PLOTS
        if plot not in history.curves
        and not plot.is_optional
        and not (validated and plot.key.startswith("validation/"))
    ]
    missing = ", ".join(plot.title.lower() for plot in left_out)
    note = f'<p class="quiet">Nothing was recorded of: {missing}.</p>' if missing else ""
    return f'<div class="plots">{figures}</div>\n{note}'


def caption(plot: Plot, curve: Curve) -> str:
    """Say what a plot shows, where it ends, and which of its values could not be drawn."""
    gaps = np.isnan(curve.values)
    facts = []
    if not gaps.all():
        last = curve.values[~gaps][-1]
        number = f"{last:,.0f}" if abs(last) >= 1000 else f"{last:.4g}"
        facts.append(f"{number} at step {curve.steps[~gaps][-1]:,.0f}")
    if plot.is_noisy and len(gaps) >= MIN_SMOOTHED:
        facts.append(f"the line averages {smoothing_width(len(gaps)):,} steps")
    if gaps.any():
        facts.append(
            f"{gaps.sum():,} of {len(gaps):,} values are not finite and leave gaps, "
            f"the first at step {curve.steps[gaps][0]:,.0f}"
        )
    return f"<strong>{plot.title}</strong> {'; '.join(facts)}"


def environment() -> dict[str, str]:
    """Describe machine and software: label -> value.

    Only what a reader needs to repeat the run is asked for: no environment variables, no names of
    hosts or users, no paths.
    """
    facts = {
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Platform": platform.platform(),
        "CPU": f"{os.cpu_count()} x {cpu_model()}",
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPUs": gpu_names(),
        "nanoray": __version__,
        "git commit": git_commit(os.path.dirname(__file__)),
    }
    for package in ("torch", "ray", "pyarrow"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return {label: value for label, value in facts.items() if value is not None}


def cpu_model() -> str:
    """Give the name of the CPU."""
    try:
        with open("/proc/cpuinfo") as file:
            names = re.findall(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    except OSError:  # not Linux
        names = []
    return str(names[0]).strip() if names else platform.processor() or platform.machine()


def gpu_names() -> str:
    """Count the GPUs by name; their serial numbers are nobody's business."""
    listed = output_of(["nvidia-smi", "-L"]) or ""
    names = Counter(re.findall(r"^GPU \d+: (.+?)(?: \(UUID: .*)?$", listed, re.MULTILINE))
    return ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"


def git_commit(folder: str) -> str | None:
    """Give the commit of the checkout that `folder` is part of; None outside of one.

    A package installed into some other project's folder is no part of that project: git must know
    its files.
    """
    git = ["git", "-C", folder]
    if output_of([*git, "ls-files", "--error-unmatch", "__init__.py"]) is None:
        return None
    commit = output_of([*git, "rev-parse", "--short", "HEAD"])
    if commit is None:
        return None
    changes = output_of([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{commit.strip()}, modified" if changes else commit.strip()


def output_of(command: list[str]) -> str | None:
    """Run a program; None where it is missing, fails, or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("left out of the report: %s", error)
        return None
    return done.stdout
