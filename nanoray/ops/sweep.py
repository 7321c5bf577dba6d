"""Sweeps over depth and length: many small runs that say what a large one will be like."""

import csv
import dataclasses
import io
import logging
import math
import os
from collections.abc import Callable
from typing import Any

from rich.console import Console

from nanoray.cluster import connection
from nanoray.cluster.connection import LEAST_CPUS_PER_WORKER, NotEnoughResourcesError
from nanoray.cluster.devices import device_kind
from nanoray.config import InputError, continue_config, from_json, to_json, worker_range
from nanoray.data.datasets import BYTES_PER_TOKEN, resolve_data
from nanoray.data.feed import STREAM_CPUS
from nanoray.data.manifest import Manifest, check_unchanged, make_manifest
from nanoray.ops.admission import start_admission
from nanoray.ops.sweep_config import SweepConfig
from nanoray.ops.sweep_view import Shown, SweepView, as_table, look_at
from nanoray.ops.trial_branch import steps_taken_over
from nanoray.ops.trial_rows import folder_of, is_done, write_outcome
from nanoray.ops.trial_table import SWEEP_FILE, TABLE_FILE, Status, TrialRow, write_trials
from nanoray.ops.trials import (
    Surroundings,
    Trial,
    affordable,
    branch,
    describe_grid,
    plan_trials,
    workers_for,
)
from nanoray.ops.tune_trials import Pool, run_trials
from nanoray.stages.pretrain import find_tokenizer
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.stages.stage_driver import default_dtype, on_gpu
from nanoray.storage import RunFolder, read_json, write_file, write_json
from nanoray.text.tokenizer_file import save_tokenizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Exams:
    """How trials are measured, by the job; both are given the settings of jobs/evaluate.py."""

    check: Callable[[dict[str, Any]], object]  # Any: settings of different types
    """Reads the questions, and raises what it would raise hours later."""
    measure: Callable[[dict[str, Any]], object]  # Any: as above


def sweep(config: SweepConfig, exams: Exams) -> str:
    """Run a sweep, or what is left of it.

    Returns:
        The table of all trials, and what is worth knowing of it.

    Raises:
        InputError: something the user gave does not work out; no trial has begun then.
    """
    storage = connection.absolute_address(config.pretrain.storage or "runs")
    # Each trial at a time needs a CPU for its workers and one for its stream, logical ones.
    connection.connect(least_cpus=2 * (config.trials_at_once or 1))
    run = RunFolder(storage, config.pretrain.run or "sweep")
    slots = find_slots(config)
    base = begun_base(config.pretrain, run)
    manifest = find_manifest(config, base, run, storage)
    trials = find_trials(config, base, run, manifest, slots)
    if config.core:
        exams.check(exam_of(config, run, trials[0]))
    logger.info("%s: %s", run, describe_grid(config.grid, trials))
    known = remember(run, base, trials)
    try:
        train(config, run, trials, known, slots)
        for trial in trials:
            if config.core and is_done(trial):  # what is measured already is not again
                exams.measure(exam_of(config, run, trial))
    finally:  # what there is of a sweep that was interrupted can be forecast from, too
        shown = [look_at(trial, slots.device) for trial in known]
        write_table(run, [one.row for one in shown])
    return told(run, shown)


def write_table(run: RunFolder, rows: list[TrialRow]) -> None:
    """Write the table of all trials, for the forecast and for a spreadsheet."""
    write_trials(str(run), rows)
    write_file(run.fs, run.path("trials.csv"), as_csv(rows).encode())


@dataclasses.dataclass(frozen=True)
class Slots:
    """How the trials share the cluster."""

    num_gpus: int
    """0 where they train on CPUs."""
    at_once: int
    num_workers: int | None
    """Of every trial; None where it follows from the depth."""
    cpus_per_worker: float
    threads_per_worker: int | None
    device: str

    def of(self, depth: int) -> int:
        """Give the workers of a trial."""
        return self.num_workers or (workers_for(depth, self.num_gpus) if self.num_gpus else 1)

    def total(self, depths: tuple[int, ...]) -> int:
        """Give the workers that may train at a time."""
        return self.num_gpus or self.at_once * max(map(self.of, depths))


def find_slots(config: SweepConfig) -> Slots:
    """Decide how many trials train at a time, and what each worker takes.

    Raises:
        NotEnoughResourcesError: the cluster does not hold one trial.
    """
    have = connection.cluster_total()
    gpus, cpus = int(have["GPU"]), have["CPU"]
    asked = worker_range(config.pretrain.num_workers)
    workers = asked[0] if asked else None
    depths = config.grid.depths
    smallest = workers or min(workers_for(depth, gpus or 1) for depth in depths)
    at_once = config.trials_at_once or max(1, gpus // smallest)
    together = gpus or at_once * smallest
    # Ray Data takes whole CPUs: with less than one for each stream, none of them would begin.
    share = math.floor(16 * (cpus - at_once * STREAM_CPUS) / together) / 16
    if gpus:
        share = min(connection.GPU_WORKER_CPUS, share)
    share = config.pretrain.cpus_per_worker or share
    needed = max(share, LEAST_CPUS_PER_WORKER) * together + at_once * STREAM_CPUS
    if needed > cpus or (gpus and smallest > gpus):
        raise NotEnoughResourcesError(
            f"{at_once} trial(s) at once with {smallest} worker(s) each, and a CPU for the stream "
            f"of each, need {needed:g} CPUs{f' and {smallest} GPUs' if gpus else ''}, and the "
            f"cluster has {cpus:g}{f' and {gpus}' if gpus else ''}. Give fewer --trials-at-once, "
            "fewer --num-workers, or fewer --cpus-per-worker."
        )
    cores = min(int(cpus), os.cpu_count() or 1)
    threads = config.pretrain.threads_per_worker
    if not gpus:
        threads = threads or max(1, cores // (at_once * smallest))
    return Slots(gpus, at_once, workers, share, threads, device_kind())


def begun_base(asked: PretrainConfig, run: RunFolder) -> PretrainConfig:
    """Give what the trials have in common, as the sweep began with it.

    Raises:
        InputError: something that decides their results has another value now.
    """
    saved = read_json(run.fs, run.path(SWEEP_FILE))
    base = dataclasses.replace(asked, seed=PretrainConfig.seed)
    if saved is None:  # another machine that goes on with the sweep may have another default
        return dataclasses.replace(base, dtype=base.dtype or default_dtype())
    try:
        return continue_config(from_json(PretrainConfig, saved["base"]), base)
    except InputError as error:
        told = str(error).partition(". Give")[0]
        raise InputError(
            f"{told.replace('This run', f'Sweep {run.run}')}. Its trials could not be compared. "
            "Give another --run, and --compare shows what the difference is worth."
        ) from error


def find_manifest(
    config: SweepConfig, base: PretrainConfig, run: RunFolder, storage: str
) -> Manifest:
    """List the text that all trials read, enough for the longest of them."""
    around = Surroundings(on_gpu(), default_dtype(), str(run), "", "")
    longest = max(trial.length.tokens for trial in plan_trials(base, config.grid, around))
    address = resolve_data(
        base.data,
        storage,
        num_bytes=longest * BYTES_PER_TOKEN,
        locate=connection.absolute_address,
    )
    saved = read_json(run.fs, run.path("manifest.json"))
    if saved is not None:
        return check_unchanged(Manifest.from_json(saved), address)
    return make_manifest(address, base.text_column, skip_bad_shards=base.skip_bad_shards)


def find_trials(
    config: SweepConfig, base: PretrainConfig, run: RunFolder, manifest: Manifest, slots: Slots
) -> list[Trial]:
    """Decide every trial, and write what they share into the sweep's folder."""
    gpu, dtype = on_gpu(), default_dtype()
    some = plan_trials(base, config.grid, Surroundings(gpu, dtype, str(run), "", ""))[0]
    run.check_writable(0)
    tokenizer = find_tokenizer(some.config, run, manifest)
    save_tokenizer(tokenizer, run.tokenizer_address)
    write_json(run.fs, run.path("manifest.json"), manifest.to_json())
    around = Surroundings(gpu, dtype, str(run), tokenizer.hash, manifest.hash)
    shared = dataclasses.replace(
        base,
        data=manifest.root,
        tokenizer=run.tokenizer_address,
        unit_cache=f"{run}/units",
        max_cost=None,
        cpus_per_worker=slots.cpus_per_worker,
        threads_per_worker=slots.threads_per_worker,
        wandb_group=base.wandb_group or run.run,
    )
    trials = [
        dataclasses.replace(
            trial,
            config=dataclasses.replace(
                trial.config, num_workers=str(slots.of(trial.config.depth or 1))
            ),
        )
        for trial in plan_trials(shared, config.grid, around)
    ]
    return branch(trials) if config.branch else trials


def remember(run: RunFolder, base: PretrainConfig, trials: list[Trial]) -> list[Trial]:
    """Keep what the sweep consists of; gives all trials that it has had, in their order."""
    saved = (read_json(run.fs, run.path(SWEEP_FILE)) or {}).get("trials", {})
    known = {name: from_json(PretrainConfig, config) for name, config in saved.items()}
    known |= {trial.name: trial.config for trial in trials}
    content = {
        "base": to_json(base),
        "trials": {name: to_json(config) for name, config in known.items()},
    }
    write_json(run.fs, run.path(SWEEP_FILE), content)
    everything = [Trial(name, config) for name, config in known.items()]
    return sorted(
        everything, key=lambda t: (t.config.depth or 0, t.length.num_steps, t.config.seed)
    )


def train(
    config: SweepConfig, run: RunFolder, trials: list[Trial], known: list[Trial], slots: Slots
) -> None:
    """Train what is left of the trials, as far as the budget goes."""
    for trial in trials:
        folder = folder_of(trial)
        if folder.read_config() is None:
            manifest = read_json(run.fs, run.path("manifest.json")) or {}
            write_json(folder.fs, folder.path("manifest.json"), manifest)
    paid = trials
    if config.max_flops is not None:
        done = sum(map(flops_spent, known))
        left = [trial for trial in trials if not is_done(trial)]
        chosen = affordable(left, config.max_flops - done)
        paid = [trial for trial in trials if trial.name in chosen or is_done(trial)]
        for trial in left:
            if trial.name not in chosen:
                write_outcome(trial, Status.STOPPED, f"--max-flops {config.max_flops:g} is spent")
    admission = start_admission(slots.total(config.grid.depths))
    view = SweepView(
        known,
        admission,
        slots.device,
        most_seconds=config.most_seconds(slots.device),
        budget=config.budget,
    )
    pool = Pool(admission, slots.at_once, config.pretrain.max_restarts)
    with view.watching():
        # Branches begin where a trunk has been, so trunks are trained first.
        for is_branch in (False, True):
            run_trials([t for t in paid if (t.trunk is not None) is is_branch], run, pool)


def exam_of(config: SweepConfig, run: RunFolder, trial: Trial) -> dict[str, Any]:  # Any: flags
    """Say how a trial's last step is measured."""
    return {
        "run": trial.name,
        "storage": str(run),
        "tasks": "core",
        "max_per_task": config.pretrain.core_max_per_task,
        "eval_bundle": config.pretrain.eval_bundle,
    }


def flops_spent(trial: Trial) -> float:
    """Count what a trial that is done has computed itself."""
    if not is_done(trial):
        return 0.0
    taken_over = steps_taken_over(folder_of(trial))
    return trial.length.flops * (1 - taken_over / trial.length.num_steps)


def as_csv(rows: list[TrialRow]) -> str:
    """Write the table for a spreadsheet."""
    target = io.StringIO()
    names = [field.name for field in dataclasses.fields(TrialRow)]
    writer = csv.DictWriter(target, names)
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return target.getvalue()


def told(run: RunFolder, shown: list[Shown]) -> str:
    """Write the table for a person, with what did not come to its end."""
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(as_table(shown))
    lines = [console.export_text().rstrip()]
    rows = [one.row for one in shown]
    unfinished = [row for row in rows if row.status is not Status.DONE]
    if unfinished:
        lines.append("\nnot in any fit, because they have no result:")
        lines += [f"  {row.name}: {row.status}. {row.reason}".rstrip() for row in unfinished]
    depths = {row.depth for row in rows if row.status is Status.DONE}
    if len(depths) == 1:
        lines.append(
            f"\nAll trials have depth {depths.pop()}: how loss falls with size cannot be fitted, "
            "only how it falls with tokens. Add --depths."
        )
    lines.append(f"\ntable: {run}/{TABLE_FILE}, trials.csv")
    if len(depths) > 1:
        lines.append(
            f"forecast: python jobs/forecast.py {run.run} --storage {run.storage} --depth 34 "
            "--ratio 40"
        )
    return "\n".join(lines)
