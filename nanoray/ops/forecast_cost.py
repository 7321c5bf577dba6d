"""What a forecast run takes: time, money, memory; and the depth that a budget is best spent on."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanoray.config import InputError
from nanoray.model.scaling import flops_per_token, gpt_config, gpu_peak_flops, num_parameters
from nanoray.ops.communication import GPUS_PER_NODE
from nanoray.ops.forecast_trials import Shape, Trials
from nanoray.ops.plan import PlanConfig, plan_facts
from nanoray.ops.scaling_law import Array, Estimate, Law, estimate
from nanoray.ops.trial_table import TrialRow
from nanoray.prices import dollars_per_hour
from nanoray.stages.pretrain_config import PretrainConfig, decide

CPU = "cpu"
MOST_DEPTH = 128


@dataclass(frozen=True)
class Machine:
    """What the run is computed on."""

    device: str
    """"cpu", or a GPU by its name."""
    num_workers: int
    flops_per_second: Estimate
    """Of one worker; the interval is that of the trials, where they tell."""
    source: str
    """Where the speed is from, for the card."""
    dollars_per_hour: float | None
    """Of one worker; None on CPUs."""

    def hours(self, flops: float) -> Estimate:
        """Give the time of a run."""
        rate = self.flops_per_second
        at = {name: flops / (getattr(rate, name) * self.num_workers * 3600) for name in RATES}
        return Estimate(at["value"], low=at["high"], high=at["low"])

    def dollars(self, flops: float) -> Estimate | None:
        """Give the price of a run."""
        if self.dollars_per_hour is None:
            return None
        hours, price = self.hours(flops), self.num_workers * self.dollars_per_hour
        return Estimate(hours.value * price, hours.low * price, hours.high * price)

    def flops_for(self, dollars: float) -> float:
        """Give the FLOPs that money buys.

        Raises:
            InputError: nothing has a price here.
        """
        if not self.dollars_per_hour:
            raise InputError(
                f"--budget-dollars {dollars:g} buys nothing that has a price: the forecast is for "
                f"{self.device}. Give --gpu and --dollars-per-gpu-hour, or --budget-flops."
            )
        return dollars / self.dollars_per_hour * 3600 * self.flops_per_second.value


RATES = ("value", "low", "high")


def choose_machine(
    trials: list[TrialRow],
    *,
    gpu: str | None,
    mfu: float | None,
    dollars_per_gpu_hour: float | None,
    num_workers: int | None,
    most_workers: int,
) -> Machine:
    """Take the GPU that was named, or what the deepest trials ran on, at the speed they had.

    Args:
        trials: of the sweep.
        gpu: the kind that was asked for.
        mfu: model FLOPs utilization, where it is not to be that of the trials.
        dollars_per_gpu_hour: where it is not to be that of the table.
        num_workers: as asked for; otherwise those of a node, or what the trials had on CPUs.
        most_workers: how many rows a step has; with more workers one would have none.

    Raises:
        InputError: a GPU whose speed is not known.
    """
    deepest = max(row.depth for row in trials)
    devices = Counter(row.device for row in trials if row.depth == deepest)
    device = gpu or devices.most_common(1)[0][0]
    if device == CPU and mfu is not None:
        raise InputError(f"--mfu {mfu:g} is of a GPU, and the trials ran on CPUs. Give --gpu.")
    peak = gpu_peak_flops(device)
    if gpu is not None and peak is None:
        raise InputError(f"--gpu {gpu} is not in the table. Give h100, h200, a100, b200, l40s ...")
    own = [row for row in trials if is_same_device(row.device, device)]
    usual = GPUS_PER_NODE if device != CPU else own[-1].num_workers
    workers = num_workers or min(usual, most_workers)
    price = None if device == CPU else dollars_per_hour(dollars_per_gpu_hour, device)
    speed = None if mfu is not None else measured_speed(own)
    if speed is not None:
        utilization = f", {100 * speed.value / peak:.1f} % MFU" if peak else ""
        return Machine(
            device,
            workers,
            speed,
            f"as the trials of depth {max(row.depth for row in own)} had{utilization}",
            price,
        )
    if peak is None:
        raise InputError(
            f"The speed of {device} is not known, and no trial measured its own. "
            "Give --gpu and --mfu."
        )
    share = mfu or PlanConfig.mfu
    rate = share * peak
    source = f"{100 * share:.1f} % MFU, {'as given' if mfu else 'as d34 had on H100'}"
    return Machine(device, workers, Estimate(rate, rate, rate), source, price)


def is_same_device(found: str, wanted: str) -> bool:
    """Say whether a trial ran on a device: CPUs, or GPUs of the same line of the table."""
    if CPU in (found, wanted):
        return found == wanted
    return wanted.lower() in found.lower() or found.lower() in wanted.lower()


def measured_speed(rows: list[TrialRow]) -> Estimate | None:
    """Give the FLOP/s of a worker over the deepest trials: median, least and most."""
    timed = [row for row in rows if row.tokens_per_second > 0]
    deepest = max((row.depth for row in timed), default=0)
    rates = np.array(
        [
            row.tokens_per_second * row.flops_per_token / row.num_workers
            for row in timed
            if row.depth == deepest
        ]
    )
    if not len(rates):
        return None
    return Estimate(float(np.median(rates)), float(rates.min()), float(rates.max()))


def run_facts(config: PretrainConfig, machine: Machine) -> dict[str, Any]:  # Any: JSON
    """Plan the run whose loss is forecast, with `jobs/plan.py`'s numbers.

    Raises:
        InputError: numbers that do not fit together.
    """
    on_gpu = machine.device != CPU
    config = dataclasses.replace(
        config,
        num_workers=str(machine.num_workers),
        dollars_per_gpu_hour=machine.dollars_per_hour or 0.0,
    )
    decided = decide(config, on_gpu=on_gpu, dtype="bfloat16")
    asked = PlanConfig(pretrain=config, gpu=machine.device, mfu=1.0)
    facts = plan_facts(decided, asked, machine.flops_per_second.value)
    if not on_gpu:
        # The estimate counts what a GPU holds in bf16.
        facts["memory_per_gpu_bytes"] = None
    return facts


@dataclass(frozen=True)
class Choice:
    """The depth that a budget is best spent on."""

    flops: float
    depth: int
    depths: tuple[int, int]
    """Its interval."""
    tokens: float
    tokens_per_param: float
    bits_per_byte: Estimate
    is_at_end: bool
    """No depth that was looked at is better on one side, so the law has no best one."""


def best_depth(law: Law, flops: float, shape: Shape, interval: float) -> Choice:
    """Try every depth at the same FLOPs."""
    models = [
        gpt_config(depth, shape.vocab_size, head_dim=shape.head_dim, max_seq_len=shape.max_seq_len)
        for depth in range(1, MOST_DEPTH + 1)
        if 64 * depth % shape.head_dim == 0
    ]
    params = np.array([num_parameters(model) for model in models], dtype=np.float64)
    embeddings = np.array([m.vocab_size * m.model_dim for m in models], dtype=np.float64)
    tokens: Array = flops / np.array([flops_per_token(model) for model in models])
    losses = law.loss(params - embeddings, tokens)
    drawn = law.loss_draws(params - embeddings, tokens)
    of_a_run = law.loss_draws(params - embeddings, tokens, of_a_run=True)
    best = int(losses.argmin())
    depths = [model.num_layers for model in models]
    ends = np.quantile(
        drawn.argmin(axis=1), [(1 - interval) / 2, (1 + interval) / 2], method="nearest"
    )
    return Choice(
        flops=flops,
        depth=depths[best],
        depths=(depths[int(ends[0])], depths[int(ends[1])]),
        tokens=float(tokens[best]),
        tokens_per_param=float(tokens[best] / params[best]),
        bits_per_byte=estimate(float(losses[best]), of_a_run[:, best], interval),
        is_at_end=best in (0, len(models) - 1),
    )


def size_of(depth: int, shape: Shape) -> float:
    """Give N, the weights that multiply, of a depth."""
    model = gpt_config(
        depth, shape.vocab_size, head_dim=shape.head_dim, max_seq_len=shape.max_seq_len
    )
    return float(num_parameters(model) - model.vocab_size * model.model_dim)


def usual_batch(trials: Trials) -> int:
    """Give the tokens per step of the deepest trials."""
    deepest = trials.depths[-1]
    batches = Counter(row.total_batch_tokens for row in trials.used if row.depth == deepest)
    return batches.most_common(1)[0][0]
