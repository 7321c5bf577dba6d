"""One page of a whole run: what each stage took, what it scores, and what it says."""

import html
import logging
from dataclasses import dataclass

from nanoray.progress import duration
from nanoray.report import page_of, shown, table
from nanoray.report_card import COLUMNS, read_card
from nanoray.storage import RunFolder, write_file

logger = logging.getLogger(__name__)


EVALUATION = "evaluation"
WITHOUT_EVALUATION = "for training; evaluations are not counted"


@dataclass(frozen=True)
class StageFacts:
    """What a stage took, and what it told at its end."""

    stage: str
    seconds: float
    """In which it ran, or waited to run."""
    dollars: float | None
    """Of what its workers held, as its own report has it; None on CPUs, unless asked for."""
    goodput: float | None
    summary: dict[str, str]
    samples: list[tuple[str, str]]

    @classmethod
    def of_evaluation(cls, seconds: float) -> "StageFacts":
        """Say how long measuring all stages took; results that were there already took nothing.

        Nobody counts what its actors hold: they come and go as exams begin and end.
        """
        return cls(EVALUATION, seconds, None, None, {}, [])

    @property
    def label(self) -> str:
        """How tables call it."""
        return COLUMNS.get(self.stage, "EVAL")

    def line(self) -> str:
        """Say in one line what it took."""
        goodput = "" if self.goodput is None else f", goodput {100 * self.goodput:.0f} %"
        dollars = "" if self.dollars is None else f", ${self.dollars:,.2f}"
        return f"{self.label:>5}  {duration(self.seconds)}{dollars}{goodput}"


def total_of(facts: list[StageFacts]) -> str:
    """Say what all took together."""
    known = [one.dollars for one in facts if one.dollars is not None]
    dollars = f", ${sum(known):,.2f} {WITHOUT_EVALUATION}" if known else ""
    return f"{duration(sum(one.seconds for one in facts))}{dollars}"


def write_page(run: RunFolder, facts: list[StageFacts]) -> None:
    """Write report.html of a run, as far as the stages go that there are facts of."""
    card = read_card(run, [one.stage for one in facts if one.stage in COLUMNS])
    trained = [one for one in facts if one.stage != EVALUATION]
    took = {one.label: one.line().strip().partition("  ")[2] for one in facts}
    took["all"] = total_of(facts)
    contents = {
        "Report card": card.to_html() if card else "",
        "What it took": table(took),
        "What it says": samples_of(trained[-1]) if trained else "",
        **{one.label: stage_section(one) for one in trained},
    }
    sections = "".join(
        f"<section><h2>{heading}</h2>\n{content}\n</section>\n"
        for heading, content in contents.items()
        if content
    )
    covered = f"{len(trained)} stages, {', '.join(one.label for one in trained)}."
    page = page_of(run.run, covered, sections)
    write_file(run.fs, run.path("report.html"), page.encode(errors="replace"))
    logger.info("wrote %s/report.html", run)


def samples_of(facts: StageFacts) -> str:
    """Show what the last stage's model answers."""
    return "\n".join(
        f"<blockquote><b>{html.escape(prompt)}</b> {html.escape(text)}</blockquote>"
        for prompt, text in facts.samples
    )


def stage_section(facts: StageFacts) -> str:
    """Show the summary of a stage, and where its own report is."""
    link = f'<p class="quiet"><a href="{shown(facts.stage)}/report.html">Its own report</a></p>'
    return table(facts.summary) + link
