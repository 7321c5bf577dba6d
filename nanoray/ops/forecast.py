"""What a run will come to, from a sweep of small ones: loss with its interval, time, money, memory.

A forecast is kept beside the sweep before the run begins, so that it can be held against what the
run then measured (`forecast_grade.py`).
"""

import math
import time
from dataclasses import dataclass
from typing import Annotated

import tyro

from nanoray.cluster import connection
from nanoray.config import InputError, flag, require_positive, require_run_name
from nanoray.ops.forecast_card import SAME, as_html, as_text, recommendation
from nanoray.ops.forecast_cost import Machine, choose_machine, run_facts, usual_batch
from nanoray.ops.forecast_facts import Basis, Facts, gather, law_for
from nanoray.ops.forecast_grade import grade, moment
from nanoray.ops.forecast_plots import draw_png, draw_svgs
from nanoray.ops.forecast_trials import Trials, choose_trials, data_of
from nanoray.ops.scaling_fit import back_test, fit_all
from nanoray.ops.trial_table import read_trials
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.storage import RunFolder, read_json, write_file, write_json


@dataclass(frozen=True, kw_only=True)
class ForecastConfig:
    """Forecast a run from a sweep of small ones; or grade a forecast after its run."""

    sweep: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the sweep; --grade looks through all sweeps without it."""
    depth: int | None = None
    """Depth of the run."""
    ratio: float | None = None
    """Its tokens per parameter, as in --tokens-per-param."""
    grade: str | None = None
    """Compare this finished run with the forecasts of it; of a trial, SWEEP/TRIAL."""
    storage: str | None = None
    """Folder or address (s3://, gs://, ...) in which sweeps and runs are; by default ./runs."""
    budget_flops: float | None = None
    """Also find the best depth and ratio for these FLOPs."""
    budget_dollars: float | None = None
    """Also find the best depth and ratio for this money."""
    gpu: str | None = None
    """Kind of GPU: h100, h200, a100, b200, ...; by default what the deepest trials ran on."""
    mfu: float | None = None
    """Model FLOPs utilization; by default that of the trials, or 0.474, as d34 had on H100."""
    dollars_per_gpu_hour: float | None = None
    """Price; by default that of the kind of GPU (nanoray/prices.py)."""
    num_workers: int | None = None
    """Training processes; by default 8 on GPUs, on CPUs as the trials had, at most one per row."""
    device_batch_size: int | None = None
    """Rows per forward pass of a worker, for the memory; by default what 80 GB hold."""
    total_batch_tokens: int | None = None
    """Tokens per step; by default as the deepest trials had."""
    vocab_size: int | None = None
    """Ids of the tokenizer; by default those of most trials. Trials with others are left out."""
    max_seq_len: int | None = None
    """Tokens in a row; by default those of most trials. Trials with others are left out."""
    head_dim: int | None = None
    """Dimensions of one attention head; by default those of most trials."""
    interval: float = 0.9
    """Part of the draws that an interval holds."""

    def __post_init__(self) -> None:
        if self.grade is None:
            needed = {"SWEEP": self.sweep, "--depth": self.depth, "--ratio": self.ratio}
            missing = [name for name, value in needed.items() if value is None]
            if missing:
                raise InputError(
                    f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given. "
                    "Write jobs/forecast.py SWEEP --depth 34 --ratio 40, or --grade RUN."
                )
        require_run_name("SWEEP", self.sweep)
        for part in [] if self.grade is None else self.grade.split("/", 1):
            require_run_name("--grade", part)
        for name in ("depth", "num_workers", "device_batch_size", "vocab_size", "max_seq_len"):
            require_positive(name, getattr(self, name))
        for name in ("ratio", "budget_flops", "budget_dollars", "mfu", "interval"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{flag(name)} {value:g} does not work. Give more than 0.")
        if not 0 < self.interval < 1:
            raise InputError(f"--interval {self.interval:g} is no part of 1. Give 0.9, 0.95, ...")
        if self.mfu is not None and self.mfu > 1:
            raise InputError(f"--mfu {self.mfu:g} is not a utilization. Give a number from 0 to 1.")
        require_positive("dollars_per_gpu_hour", self.dollars_per_gpu_hour, least=0)


def forecast(config: ForecastConfig) -> str:
    """Make a forecast, keep it beside the sweep, and give its card; or grade one.

    Raises:
        InputError: no such sweep or run, too few trials, or numbers that do not fit together.
    """
    storage = connection.absolute_address(config.storage or "runs")
    if config.grade is not None:
        return grade(storage, config.grade, config.sweep)
    assert config.sweep is not None, "checked"
    folder = RunFolder(storage, config.sweep)
    trials = choose_trials(
        read_trials(str(folder)),
        config.sweep,
        vocab_size=config.vocab_size,
        max_seq_len=config.max_seq_len,
        head_dim=config.head_dim,
    )
    asked = asked_run(config, trials)
    assert asked.total_batch_tokens, "by the trials"
    assert asked.max_seq_len, "by the trials"
    machine = choose_machine(
        trials.used,
        gpu=config.gpu,
        mfu=config.mfu,
        dollars_per_gpu_hour=config.dollars_per_gpu_hour,
        num_workers=config.num_workers,
        most_workers=max(1, asked.total_batch_tokens // asked.max_seq_len),
    )
    run = run_facts(asked, machine)
    basis = stand_on(trials, run["depth"], str(folder), config.interval)
    facts = gather(basis, run, machine, budgets_of(config, run["total_flops"], machine))
    made = time.time()
    facts |= {
        "title": f"Forecast of depth {config.depth} at ratio {config.ratio:g} from {config.sweep}",
        "sweep": config.sweep,
        "ratio": config.ratio,
        "made": made,
        "made_at": moment(made),
        "recommendation": recommendation(facts),
    }
    return keep(folder, facts, basis)


def asked_run(config: ForecastConfig, trials: Trials) -> PretrainConfig:
    """Give the run that is forecast: the sweep's shape at another depth and length."""
    return PretrainConfig(
        depth=config.depth,
        tokens_per_param=config.ratio,
        vocab_size=trials.shape.vocab_size,
        max_seq_len=trials.shape.max_seq_len,
        head_dim=trials.shape.head_dim,
        total_batch_tokens=config.total_batch_tokens or usual_batch(trials),
        device_batch_size=config.device_batch_size,
    )


def stand_on(trials: Trials, depth: int, sweep: str, interval: float) -> Basis:
    """Fit what can be fitted, and test it on the largest budget."""
    fits = fit_all(trials.points, trials.cost)
    law, points = law_for(depth, trials, fits)
    test = back_test(points, has_size=law.has_size, interval=interval)
    return Basis(trials, data_of(trials.used, sweep), fits, law, points, test, interval)


def budgets_of(config: ForecastConfig, flops: float, machine: Machine) -> dict[str, float]:
    """Give the FLOPs of the run, and of the budgets that were asked for, by their label."""
    budgets = {SAME: flops}
    if config.budget_flops is not None:
        budgets[f"{config.budget_flops:.3g} FLOPs"] = config.budget_flops
    if config.budget_dollars is not None:
        budgets[f"${config.budget_dollars:,.0f}"] = machine.flops_for(config.budget_dollars)
    return budgets


def keep(folder: RunFolder, facts: Facts, basis: Basis) -> str:
    """Write forecast-*.json, .png and .html into the sweep's folder, and give the card.

    An earlier forecast of the same run stays under the name of its moment: a later one is made in
    the knowledge of more, perhaps of the run itself, and must not take its place for the grade.
    """
    name = f"forecast-d{facts['depth']}-r{facts['ratio']:g}"
    earlier = read_json(folder.fs, folder.path(f"{name}.json"))
    if earlier is not None:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(earlier["made"]))
        write_json(folder.fs, folder.path(f"{name}.made-{stamp}.json"), earlier)
    page = as_html(facts, draw_svgs(facts, basis))
    picture = draw_png(facts["title"], facts, basis)
    write_json(folder.fs, folder.path(f"{name}.json"), facts)
    write_file(folder.fs, folder.path(f"{name}.png"), picture)
    write_file(folder.fs, folder.path(f"{name}.html"), page.encode(errors="replace"))
    return as_text(facts, f"{folder}/{name}.html")
