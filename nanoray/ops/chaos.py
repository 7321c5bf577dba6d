"""Harm runs on purpose, and prove that they recover: one row per fault, or many in one run."""

import io
import json
import logging
import math
import random
import shlex
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import ray
from rich.console import Console
from rich.table import Table

from nanoray.cluster import connection
from nanoray.cluster.devices import CPU, device_kind
from nanoray.config import InputError, RunFailedError, require_positive, worker_range
from nanoray.ops.chaos_faults import FAULTS, Target
from nanoray.ops.chaos_job import WatchedJob
from nanoray.ops.chaos_trial import Injury, Plan, Trial, run_trial
from nanoray.ops.local_cluster import LocalCluster
from nanoray.stages.pretrain import STAGE
from nanoray.storage import RunFolder, StageFolder

logger = logging.getLogger(__name__)

SMALL_RUN = (
    "--depth 1 --head-dim 32 --vocab-size 512 --max-seq-len 128 --total-batch-tokens 2048 "
    "--device-batch-size 4 --validation-tokens 4096 --num-steps 400 --save-every 20 "
    "--num-workers 2 --cpus-per-worker 1 --threads-per-worker 1 --eager --hang-seconds 10"
)
OWN_FLAGS = ("--run", "--storage", "--fresh")
"""Flags of the job that are decided here."""
CALM = "calm"


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """Kill workers, nodes and drivers of real runs, and compare them with an undisturbed one."""

    faults: tuple[str, ...] = ("worker", "freeze", "driver", "node")
    """worker, freeze, driver, node, partition, preemption, storage, disk, damage."""
    seeds: int = 1
    """Runs for each fault; each draws another moment and another victim."""
    first_seed: int = 0
    """Where the seeds begin."""
    per_run: int = 0
    """So many faults, drawn at random, in one run per seed; by default each in runs of its own."""
    pretrain: str = SMALL_RUN
    """Flags of jobs/pretrain.py, as in --pretrain="--depth 4"; by default 400 short steps."""
    storage: str | None = None
    """Where the runs are kept; by default ./chaos."""
    nodes: int | None = None
    """Start a cluster of so many nodes on this machine; by default 3 if no cluster runs here."""
    cpus_per_node: int = 2
    """Logical CPUs of each of these nodes."""
    outage_seconds: float = 10.0
    """How long nodes and storage are away, and the notice of a preemption."""
    json: bool = False
    """Print JSON only."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.faults if name not in FAULTS]
        if unknown or not self.faults:
            raise InputError(
                f"--faults {' '.join(unknown)} is unknown. Choose among {', '.join(FAULTS)}."
            )
        for name in ("seeds", "cpus_per_node", "outage_seconds", "nodes"):
            require_positive(name, getattr(self, name))
        require_positive("per_run", self.per_run or None)
        try:
            flags = [word.partition("=")[0] for word in shlex.split(self.pretrain)]
        except ValueError as error:
            raise InputError(f"--pretrain {self.pretrain} cannot be read: {error}.") from error
        taken = [flag for flag in flags if flag in OWN_FLAGS]
        if taken:
            raise InputError(f"--pretrain has {taken[0]}, which is decided here. Leave it out.")


def chaos(config: ChaosConfig) -> str:
    """Run the undisturbed run, then all that are harmed; gives the table.

    Raises:
        InputError: a fault cannot be done here.
        RunFailedError: a run did not recover, or does not equal the undisturbed one.
    """
    storage = connection.absolute_address(config.storage or "chaos")
    # Ray tells of a node that it lost on the standard output, where JSON is to be alone.
    with redirect_stdout(sys.stderr), cluster_for(config) as cluster:
        calm = WatchedRun(config, storage, CALM)
        num_steps = calm.finish()
        must_be_exact = bits_are_decided(calm.folder)
        trials = []
        for plan in plans(config, num_steps):
            run = WatchedRun(config, storage, plan.run)
            rng = random.Random(plan.seed)
            target = Target(run.job, run.folder, rng, config.outage_seconds, cluster)
            trial = run_trial(plan, target, calm.folder, must_be_exact=must_be_exact)
            trials.append(trial)
    result = json.dumps([t.to_json() for t in trials]) if config.json else as_table(trials)
    require_recovery(trials, result)
    return result


def bits_are_decided(folder: StageFolder) -> bool:
    """Say whether another run of the same job must equal this one to the last bit.

    With another number of workers, and on GPUs, sums are made in another order.
    """
    least, most = worker_range((folder.read_config() or {}).get("num_workers")) or (1, 1)
    return least == most and device_kind() == CPU


def require_recovery(trials: list[Trial], result: str) -> None:
    """Check that every trial ended as the undisturbed run did.

    Raises:
        RunFailedError: one did not; the text says which, why, and the result.
    """
    failed = [f"{trial.plan.run} ({trial.problem})" for trial in trials if trial.problem]
    if failed:
        raise RunFailedError(
            f"{len(failed)} of {len(trials)} runs did not recover: {'; '.join(failed)}\n{result}"
        )


class WatchedRun:
    """The folder of a run, and the job that makes it."""

    def __init__(self, config: ChaosConfig, storage: str, run: str) -> None:
        self.folder = RunFolder(storage, run).stage(STAGE)
        arguments = [*shlex.split(config.pretrain), "--run", run, "--storage", storage]
        address = ray.get_runtime_context().gcs_address
        self.job = WatchedJob(self.folder, arguments, address)

    def finish(self) -> int:
        """Run the job to its end, if that has not been done; gives the number of steps.

        Raises:
            RunFailedError: it did not end well.
        """
        self.job.start()
        try:
            self.job.wait()
        finally:  # Ctrl-C does not reach it
            self.job.kill()
        if self.job.code:
            raise RunFailedError(f"the undisturbed run failed:\n{self.job.last_lines()}")
        logger.info("the undisturbed run has %d steps", self.job.newest_step())
        return self.job.newest_step()


@contextmanager
def cluster_for(config: ChaosConfig) -> Iterator[LocalCluster | None]:
    """Connect to the cluster that runs, or start one with several nodes for as long as needed."""
    running = connection.known_address()
    if config.nodes is not None and running is not None:
        raise InputError(
            f"--nodes {config.nodes} asks for a new cluster, but the one at {running} is running. "
            "Leave --nodes out to use that, or stop it."
        )
    if running is not None:
        connection.connect()
        yield None
        return
    cluster = LocalCluster(config.nodes or 3, config.cpus_per_node)
    try:
        connection.connect(cluster.address)
        yield cluster
    finally:
        cluster.stop()


def plans(config: ChaosConfig, num_steps: int) -> Iterator[Plan]:
    """Draw what happens when: between a tenth and seven tenths of the run.

    The rest is for what is noticed late, as a notice of ten seconds, to happen before the end.
    """
    first, last = max(1, num_steps // 10), max(2, num_steps * 7 // 10)
    if config.per_run > last - first:
        raise InputError(
            f"--per-run {config.per_run} faults find no room in {num_steps} steps. Give --pretrain "
            "more --num-steps."
        )
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        if config.per_run:
            rng = random.Random(f"{seed}")
            steps = sorted(rng.sample(range(first, last), config.per_run))
            drawn = tuple((step, rng.choice(config.faults)) for step in steps)
            yield Plan(f"mixed-{seed}", seed, drawn)
            continue
        for fault in config.faults:
            rng = random.Random(f"{seed} {fault}")
            yield Plan(f"{fault}-{seed}", seed, ((rng.randrange(first, last), fault),))


def as_table(trials: list[Trial]) -> str:
    """Give one row per fault, and what is to be said of whole runs."""
    table = Table("fault", "times", "detected after", "training after", "saved after", "steps lost")
    injuries = [injury for trial in trials for injury in trial.injuries]
    for fault in dict.fromkeys(injury.fault for injury in injuries):
        of_fault = [injury for injury in injuries if injury.fault == fault]
        table.add_row(fault, str(len(of_fault)), *columns(of_fault))
    runs = Table("run", "faults", "goodput", "losses", "ledger", "weights")
    for trial in trials:
        runs.add_row(trial.plan.run, str(len(trial.injuries)), *verdict(trial))
    text = io.StringIO()
    console = Console(file=text, width=100)
    console.print(table, runs)
    equal = sum(trial.is_equal for trial in trials)
    return f"{text.getvalue()}\n{equal} of {len(trials)} runs equal the undisturbed one bit for bit"


def columns(injuries: list[Injury]) -> list[str]:
    """Give median and largest of what was measured of a fault."""
    cells = []
    for name in ("detected_after", "training_after", "saved_after"):
        known = [v for injury in injuries if (v := getattr(injury, name)) is not None]
        none = "never" if name == "training_after" else "-"
        typical = f"{statistics.median(known):.1f} s, at most {max(known):.1f}" if known else none
        cells.append(typical)
    lost = [injury.lost_steps for injury in injuries]
    return [*cells, f"{statistics.median(lost):.0f}, at most {max(lost)}"]


def verdict(trial: Trial) -> list[str]:
    """Say how a run compares with the undisturbed one."""
    if trial.ended:
        return ["-", trial.ended, "-", "-"]
    losses = "equal" if trial.same_losses else f"within {trial.largest_difference:.1g}"
    if math.isnan(trial.largest_difference):
        losses = "of other steps"
    others = ["equal" if same else "differ" for same in (trial.same_ledger, trial.same_weights)]
    return [f"{trial.goodput:.2f}", losses, *others]
