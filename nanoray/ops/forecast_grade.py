"""A forecast held against the run that it was of.

Only a forecast that was kept before the run began is graded as one. Of several the newest of those
counts; where all are younger than the run, the grade says so first.
"""

import datetime
import json
from dataclasses import dataclass
from typing import Any

from nanoray.config import InputError, from_json
from nanoray.events import read_events
from nanoray.metrics import Records, read_metrics
from nanoray.model.scaling import flops_per_token
from nanoray.progress import duration
from nanoray.report_card import FIRST, read_card
from nanoray.stages.pretrain_config import PretrainConfig, budget, model_config
from nanoray.storage import RunFolder, StageFolder, list_folder, read_json, write_json

Facts = dict[str, Any]  # Any: JSON

STAGE = "pretrain"
SAME_RATIO = 0.02
"""Relative distance up to which a run has the ratio that was forecast: steps are whole."""
BITS = "validation/bits_per_byte"


@dataclass(frozen=True)
class Measured:
    """What a run came to."""

    began: float
    depth: int
    tokens_per_param: float
    shape: Facts
    data: str
    bits_per_byte: float
    hours: float
    """Of its training steps."""
    num_workers: int | None
    """None where its metrics do not tell."""
    peak_memory_bytes: int | None
    core: float | None


@dataclass(frozen=True)
class Row:
    """One quantity, forecast and measured."""

    forecast: Facts
    """value, low, high; the latter two are the value where there is no interval."""
    measured: float

    @property
    def verdict(self) -> str:
        """Say where the measured value lies."""
        value, low, high = (self.forecast[key] for key in ("value", "low", "high"))
        if low == high:
            return f"{100 * (self.measured / value - 1):+.1f} %, no interval was given"
        return "inside" if low <= self.measured <= high else "OUTSIDE"


def grade(storage: str, run: str, sweep: str | None) -> str:
    """Compare a run with the forecasts of it, keep the result beside each, and give it as text.

    Args:
        storage: where runs and sweeps are.
        run: name of the run; of a trial, SWEEP/TRIAL.
        sweep: whose forecasts are looked at; None looks at those of all sweeps.

    Raises:
        InputError: no such run, one that has not finished, or one that nobody forecast.
    """
    measured = measure(RunFolder(storage, run).stage(STAGE))
    names = [sweep] if sweep else list_folder(*places(storage))
    texts = []
    for name in names:
        folder = RunFolder(storage, name)
        chosen = choose_forecast(folder, measured)
        if chosen is not None:
            texts.append(grade_one(folder, run, measured, *chosen))
    if not texts:
        where = sweep or "any sweep here"
        raise InputError(
            f"{run} has depth {measured.depth} and ratio {measured.tokens_per_param:.3g}, of which "
            f"{where} holds no forecast. Make one before a run: jobs/forecast.py SWEEP --depth "
            f"{measured.depth} --ratio {measured.tokens_per_param:.3g}"
        )
    return "\n\n".join(texts)


def places(storage: str) -> tuple[Any, str]:  # Any: fsspec's filesystem has no types
    """Give the filesystem of a storage and the path in it."""
    folder = RunFolder(storage, ".")
    return folder.fs, folder.root.removesuffix("/.")


def measure(folder: StageFolder) -> Measured:
    """Read what a finished run came to.

    Raises:
        InputError: there is no such run, or it has not finished.
    """
    saved = folder.read_config()
    if saved is None:
        raise InputError(f"{folder} holds no run. Give the name of one, and its --storage.")
    records = read_metrics(folder.fs, folder.path("metrics.jsonl"))
    bits = next((record[BITS] for record in reversed(records) if BITS in record), None)
    if not folder.run.is_done(STAGE) or bits is None:
        raise InputError(
            f"{folder.run.run} has not finished pretraining: it stands at step "
            f"{records[-1]['step'] if records else 0}. Grade it when it has."
        )
    config = from_json(PretrainConfig, saved)
    model = model_config(config)
    events = read_events(folder)
    result = read_json(folder.fs, folder.path("result.json")) or {}
    card = read_card(folder.run)
    core = card.scores.get(FIRST, {}).get(STAGE) if card else None
    return Measured(
        began=float(events[0]["time"] if events else records[0]["time"]),
        depth=model.num_layers,
        tokens_per_param=budget(config, model).tokens_per_param,
        shape={
            "vocab_size": model.vocab_size,
            "max_seq_len": model.max_seq_len,
            "head_dim": model.head_dim,
        },
        data=config.data or "embedded texts",
        bits_per_byte=float(bits),
        hours=sum(record["train/step_seconds"] for record in records) / 3600,
        num_workers=count_workers(records, flops_per_token(model)),
        peak_memory_bytes=result.get("peak_memory_bytes"),
        core=core.value if core else None,
    )


def count_workers(records: Records, flops: float) -> int | None:
    """Tell the number of workers from the utilization, which is per worker, and the speed."""
    last = records[-1]
    speed, share, peak = (
        last.get(f"train/{n}") for n in ("tokens_per_second", "mfu", "peak_flops")
    )
    if not (speed and share and peak):
        return None
    return max(1, round(speed * flops / (share * peak)))


def choose_forecast(folder: RunFolder, run: Measured) -> tuple[str, Facts] | None:
    """Give the newest forecast of a run from before it began, else the newest, by its file name."""
    found: list[tuple[str, Facts]] = []
    for name in list_folder(folder.fs, folder.path()):
        if not (name.startswith(f"forecast-d{run.depth}-r") and name.endswith(".json")):
            continue
        facts = read_json(folder.fs, folder.path(name)) or {}
        ratio = facts.get("ratio", 0.0)
        if ratio and abs(run.tokens_per_param / ratio - 1) <= SAME_RATIO:
            found.append((name, facts))
    return max(found, key=lambda one: (one[1]["made"] < run.began, one[1]["made"]), default=None)


def grade_one(folder: RunFolder, run: str, measured: Measured, name: str, facts: Facts) -> str:
    """Hold one forecast against the run, and keep the result beside it."""
    rows, notes = compare(facts, measured)
    late = facts["made"] >= measured.began
    if late:
        after = duration(facts["made"] - measured.began)
        notes.insert(0, f"THIS IS NO FORECAST: it was made {after} after the run began.")
    file = f"grade-{run.replace('/', '-')}.json"
    verdicts = {
        label: {"forecast": row.forecast, "measured": row.measured, "verdict": row.verdict}
        for label, row in rows.items()
    }
    saved = {
        "run": run,
        "forecast": name,
        "made": facts["made"],
        "run_began": measured.began,
        "made_before_the_run": not late,
        "interval": facts["interval"],
        "rows": verdicts,
        "notes": notes,
    }
    write_json(folder.fs, folder.path(file), json.loads(json.dumps(saved)))
    level = f"{100 * facts['interval']:.0f} % interval"
    lines = [
        f"{folder.run}/{name}, made {moment(facts['made'])}; {run} began {moment(measured.began)}",
        *notes,
        f"{'':<16}{'forecast':>12}{level:>24}{'measured':>12}  verdict",
    ]
    for label, row in rows.items():
        value, low, high = (f"{row.forecast[key]:,.4g}" for key in ("value", "low", "high"))
        between = "none" if low == high else f"{low} to {high}"
        lines.append(
            f"{label:<16}{value:>12}{between:>24}{f'{row.measured:,.4g}':>12}  {row.verdict}"
        )
    return "\n".join([*lines, f"kept: {folder}/{file}"])


def compare(facts: Facts, measured: Measured) -> tuple[dict[str, Row], list[str]]:
    """Give what was both forecast and measured, and what a reader must know of the comparison."""
    told, notes = facts["predicted"], []
    rows = {"bits per byte": Row(told["bits_per_byte"], measured.bits_per_byte)}
    if told["core"] and measured.core is not None:
        rows["CORE"] = Row(told["core"], measured.core)
    elif measured.core is not None:
        notes.append(f"CORE is {measured.core:.4f}; none was forecast.")
    workers, hours = told["num_workers"], measured.hours
    if measured.num_workers not in (None, workers):
        notes.append(
            f"The run had {measured.num_workers} workers, the forecast {workers}: its "
            f"{hours:.4g} h are counted as {hours * measured.num_workers / workers:.4g} h."
        )
        hours *= measured.num_workers / workers
    rows["hours"] = Row(told["hours"], hours)
    memory = told["memory_per_gpu_bytes"]
    if memory and measured.peak_memory_bytes:
        size = memory / 2**30
        forecast = {"value": size, "low": size, "high": size}
        rows["memory, GiB"] = Row(forecast, measured.peak_memory_bytes / 2**30)
    for name, value in measured.shape.items():
        if facts["shape"][name] != value:
            notes.append(f"The run has {name} {value}, the forecast is for {facts['shape'][name]}.")
    if facts["data"] not in (None, measured.data):
        notes.append(
            f"The run is trained on {measured.data}, the sweep on {facts['data']}: bits per "
            "byte of different texts cannot be compared."
        )
    return rows, notes


def moment(seconds: float) -> str:
    """Write a time of day, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
