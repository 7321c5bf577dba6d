"""The trials of a sweep: which they are, and what each one is called.

A trial's name ends in a hash over all that decides its result, so a sweep that is repeated,
extended or killed finds what is done already.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from dataclasses import dataclass

from nanoray.config import InputError, RunConfig, flag
from nanoray.model.scaling import TrainingBudget
from nanoray.stages.pretrain_config import PretrainConfig, budget, decide, model_config, schedule

AXES = ("depth", "tokens_per_param", "target_flops", "num_steps")
"""What a sweep gives to its trials, and nobody else may."""
GPUS_OF_A_NODE, SMALL_DEPTH = 8, 14
"""nanochat: up to depth 14 one GPU is enough for a trial; larger ones take a whole node."""


@dataclass(frozen=True)
class Grid:
    """The axes of a sweep: every depth with every horizon and every seed."""

    depths: tuple[int, ...]
    ratios: tuple[float, ...]
    """Tokens per parameter; or else:"""
    flops: tuple[float, ...]
    """of each trial."""
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.depths) * len(self.ratios or self.flops) * len(self.seeds)


@dataclass(frozen=True)
class Surroundings:
    """What the trials of a sweep share and do not decide."""

    on_gpu: bool
    dtype: str
    """Where nobody has chosen one."""
    storage: str
    """The sweep's folder: its trials are runs in it."""
    tokenizer_hash: str
    manifest_hash: str


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    config: PretrainConfig
    """Decided."""
    trunk: str | None = None
    """The longer trial with whose steps it begins, if any."""
    branch_step: int = 0
    """How many those are."""

    @property
    def length(self) -> TrainingBudget:
        """Say how long it is."""
        return budget(self.config, model_config(self.config))

    @property
    def own_flops(self) -> float:
        """Count what it computes itself."""
        own = 1 - self.branch_step / self.length.num_steps
        return self.length.flops * own


def read_numbers(name: str, text: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    """Read numbers separated by commas, each once, rising.

    Raises:
        InputError: what stands there is no number, or one that is not above 0.
    """
    found = []
    for part in text.split(","):
        try:
            value = kind(part)
        except ValueError:
            value = kind(-1)
        if not 0 < value < math.inf and not (name == "seeds" and value == 0):
            raise InputError(
                f"{flag(name)} {text}: {part.strip() or 'nothing'!r} is no such number. "
                f"Write them as in {'4,6,8' if kind is int else '5,10,20'}."
            )
        found.append(value)
    return tuple(sorted(set(found)))


def check_base(base: PretrainConfig) -> None:
    """Raise an InputError if the flags of the trials say what the axes of the sweep do."""
    given = [flag(name) for name in AXES if getattr(base, name) is not None]
    if given:
        raise InputError(
            f"{' and '.join(given)} cannot be given to a sweep. Its axes are --depths, and "
            "--ratios or --flops."
        )
    if base.fresh:
        raise InputError("--fresh would begin every trial anew. Give another --run.")
    if base.core_every is not None:
        raise InputError("--core-every is for single runs. Give --core, and each trial is measured")


def plan_trials(base: PretrainConfig, grid: Grid, around: Surroundings) -> list[Trial]:
    """Decide every trial of a grid.

    Raises:
        InputError: one that cannot be, as jobs/pretrain.py would say it.
    """
    trials = []
    for depth, length, seed in itertools.product(
        grid.depths, grid.ratios or grid.flops, grid.seeds
    ):
        asked = dataclasses.replace(
            base,
            run="trial",
            depth=depth,
            seed=seed,
            storage=around.storage,
            tokens_per_param=length if grid.ratios else None,
            target_flops=None if grid.ratios else length,
        )
        config = decide(asked, on_gpu=around.on_gpu, dtype=around.dtype)
        short = f"r{length:g}" if grid.ratios else f"c{length:.3g}".replace("+", "")
        name = f"d{depth}-{short}-s{seed}-{trial_hash(config, around)[:8]}"
        trials.append(Trial(name, dataclasses.replace(config, run=name)))
    return trials


def trial_hash(config: PretrainConfig, around: Surroundings) -> str:
    """Hash all that decides the result of a trial."""
    decides = {**identity_of(config), "data": around.manifest_hash}
    content = json.dumps([decides, around.tokenizer_hash], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def identity_of(config: RunConfig) -> dict[str, object]:
    """Give the values that decide a result."""
    return {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.metadata.get("identity")
    }


def branch(trials: list[Trial]) -> list[Trial]:
    """Let the shorter trials of a depth and seed begin with the steps of the longest one.

    Up to where its learning rate falls, a run does not depend on its length. So a shorter one goes
    on from the longer one's checkpoint there, and ends with the very weights it would have had.

    Raises:
        InputError: the rates also rise, over a part of the run that depends on its length.
    """
    longest: dict[tuple[int | None, int], Trial] = {}
    for trial in sorted(trials, key=lambda t: t.length.num_steps):
        if trial.config.warmup_ratio:
            raise InputError(
                f"--warmup-ratio {trial.config.warmup_ratio} is a part of the run, so runs of "
                "different length have no beginning in common. Leave it out, or --branch."
            )
        longest[trial.config.depth, trial.config.seed] = trial
    branched, wanted = [], {trunk.name: list[int]() for trunk in longest.values()}
    for trial in trials:
        trunk = longest[trial.config.depth, trial.config.seed]
        step = flat_steps(trial)
        if trial.name == trunk.name or not 0 < step <= flat_steps(trunk):
            branched.append(trial)
            continue
        wanted[trunk.name].append(step)
        branched.append(dataclasses.replace(trial, trunk=trunk.name, branch_step=step))
    return [
        dataclasses.replace(
            trial,
            config=dataclasses.replace(trial.config, save_at=tuple(wanted.get(trial.name, ()))),
        )
        for trial in branched
    ]


def flat_steps(trial: Trial) -> int:
    """Count the steps of a trial before its learning rate falls."""
    plan = schedule(trial.config, trial.length.num_steps)
    return plan.num_steps - round(plan.warmdown_ratio * plan.num_steps)


def workers_for(depth: int, num_gpus: int) -> int:
    """Choose how many GPUs a trial takes."""
    return min(num_gpus, 1 if depth <= SMALL_DEPTH else GPUS_OF_A_NODE)


def affordable(trials: list[Trial], flops: float) -> set[str]:
    """Choose the trials that a number of FLOPs pays for: the cheapest first, as many as fit.

    A branch is paid for with its trunk alone, and so comes after it; without its trunk, unless that
    is done, it is a run from the beginning.
    """
    chosen: set[str] = set()
    names = {trial.name for trial in trials}
    for trial in sorted(trials, key=lambda t: (t.trunk is not None, t.own_flops)):
        lacks_trunk = trial.trunk in names - chosen
        cost = trial.length.flops if lacks_trunk else trial.own_flops
        if cost <= flops:
            flops -= cost
            chosen.add(trial.name)
    return chosen


def describe_grid(grid: Grid, trials: list[Trial]) -> str:
    """Say what a sweep is, in one line."""
    total = sum(trial.own_flops for trial in trials)
    whole = sum(trial.length.flops for trial in trials)
    lengths = grid.ratios or grid.flops
    unit = "tokens per parameter" if grid.ratios else "FLOPs"
    saved = f", {100 * (1 - total / whole):.0f} % less by branching" if total < whole else ""
    return (
        f"{len(trials)} trials: depths {', '.join(map(str, grid.depths))}, "
        f"{', '.join(f'{length:g}' for length in lengths)} {unit}, "
        f"{len(grid.seeds)} seed(s); {total:.3g} FLOPs{saved}"
    )
