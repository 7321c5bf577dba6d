"""What a sweep is told."""

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from nanoray.config import (
    LARGEST_SEED,
    InputError,
    flag,
    require_between,
    require_positive,
    require_run_name,
    worker_range,
)
from nanoray.ops.trials import Grid, check_base, read_numbers
from nanoray.prices import dollars_per_hour
from nanoray.stages.pretrain_config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train many small models, and write down what each came to.

    Other flags are those of jobs/pretrain.py and hold for every trial; --run names the sweep.
    """

    pretrain: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig
    )
    """What the trials have in common; --max-cost is for all of them together."""
    depths: str | None = None
    """Depths of the models, as in 4,6,8."""
    ratios: str | None = None
    """Lengths of the runs in tokens per parameter, as in 5,10,20,40."""
    flops: str | None = None
    """Or their lengths in FLOPs, as in 1e18,2e18."""
    seeds: str | None = None
    """Every trial once with each seed, as in 42,43; by default 42."""
    branch: bool = False
    """Train what runs of a depth have in common once: the same results for less compute."""
    core: bool = False
    """Measure CORE of every trial."""
    trials_at_once: int | None = None
    """Trials that train at a time; by default as many as the GPUs hold, and one on CPUs. On a
    machine without a cluster, a local one gets logical CPUs for as many."""
    max_flops: float | None = None
    """Train only as many trials as this pays for, the cheapest first."""
    max_worker_hours: float | None = None
    """Stop once the workers of all trials, GPUs if there are any, have taken this long."""
    compare: tuple[str, str] | None = None
    """Train nothing, and compare two sweeps of this storage: how much compute is B's worth of A."""

    def __post_init__(self) -> None:
        require_positive("trials_at_once", self.trials_at_once)
        for name in ("max_flops", "max_worker_hours"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(
                    f"{flag(name)} {value:g} pays for nothing. Give more, or leave it."
                )
        for name in self.compare or ():
            require_run_name("--compare", name)
        if self.compare is not None:
            return
        if self.depths is None or (self.ratios is None) == (self.flops is None):
            raise InputError(
                "A sweep needs --depths, as in 4,6,8, and one of --ratios, as in 5,10,20, and "
                "--flops, as in 1e18,2e18."
            )
        check_base(self.pretrain)
        for seed in self.grid.seeds:
            require_between("seeds", seed, LARGEST_SEED)
        workers = worker_range(self.pretrain.num_workers)
        if workers is not None and workers[0] != workers[1]:
            raise InputError(
                f"--num-workers {self.pretrain.num_workers} is a range, and a sweep makes room for "
                "a fixed number. Give one, or leave it out."
            )

    @property
    def grid(self) -> Grid:
        """The axes."""
        assert self.depths is not None, "checked"
        return Grid(
            depths=tuple(map(int, read_numbers("depths", self.depths, int))),
            ratios=read_numbers("ratios", self.ratios, float) if self.ratios else (),
            flops=read_numbers("flops", self.flops, float) if self.flops else (),
            seeds=tuple(
                map(int, read_numbers("seeds", self.seeds or str(self.pretrain.seed), int))
            ),
        )

    @property
    def budget(self) -> str:
        """Say what the workers' time is bounded by, as it was given."""
        found = {"max_worker_hours": self.max_worker_hours, "max_cost": self.pretrain.max_cost}
        given = [f"{flag(name)} {value:g}" for name, value in found.items() if value is not None]
        return " and ".join(given)

    def most_seconds(self, device: str) -> float | None:
        """Give the time of workers that may be spent, where they train on such a device."""
        hours = [] if self.max_worker_hours is None else [self.max_worker_hours]
        price = dollars_per_hour(self.pretrain.dollars_per_gpu_hour, device)
        if self.pretrain.max_cost is not None and price > 0:
            hours.append(self.pretrain.max_cost / price)
        return 3600 * min(hours) if hours else None
