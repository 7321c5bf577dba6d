"""Pretraining in the cluster: where a group of workers resumes, and what each of them does."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import ray
import torch
from ray.data import DataIterator, Dataset

from nanoray.cluster.connection import Resources
from nanoray.cluster.group import RayWorld
from nanoray.cluster.recovery import Cause, Decision, Failure
from nanoray.config import to_json
from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import Layout
from nanoray.data.feed import Actor, StreamStart, blocks_of, stream
from nanoray.data.plan import DataPlan
from nanoray.events import append_event, failure_history, read_events
from nanoray.goodput import Account, open_account
from nanoray.metrics import MetricsLogger, read_metrics, start_wandb
from nanoray.model.generate import generate
from nanoray.model.gpt import DTYPES, GPT, GPTConfig
from nanoray.model.scaling import flops_per_token
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    budget,
    model_config,
    optimizer_config,
    schedule,
)
from nanoray.storage import RunFolder, StageFolder, with_patience
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.checkpoint_files import committed_steps, newest_verified_step
from nanoray.train.checkpoint_name import SavedModel
from nanoray.train.device import can_compile, keep_freed_memory, peak_flops
from nanoray.train.guard import StepGuard
from nanoray.train.loop import LoopConfig, train
from nanoray.train.optimizer import MuonAdamW
from nanoray.train.rollback import leave_out, start_cursor
from nanoray.train.save_interval import SaveConfig
from nanoray.train.state import TrainState
from nanoray.train.validation import Validation
from nanoray.train.world import World

logger = logging.getLogger(__name__)

T = TypeVar("T")

STAGE = "pretrain"
SPARE_STEPS = 8
"""How far the stream reaches beyond the last step."""

SAMPLE_PROMPTS = (
    "The capital of France is",
    "It is a truth universally acknowledged, that",
    "The people of the United States",
    "The opposite of hot is",
)
SAMPLE_TOKENS = 64
SAMPLE_TEMPERATURE = 0.7
SAMPLE_TOP_K = 50


@dataclass(frozen=True)
class PretrainJob:
    """All that controller and workers need to know of a run."""

    config: PretrainConfig
    """Decided."""
    storage: str
    plan: DataPlan
    layout: Layout
    resources: Resources
    bytes_per_token: float
    pacer: Actor

    @property
    def folder(self) -> StageFolder:
        """The stage's folder."""
        assert self.config.run, "decided"
        return RunFolder(self.storage, self.config.run).stage(STAGE)

    @property
    def model(self) -> GPTConfig:
        """The model's shape and numerics."""
        return model_config(self.config)

    @property
    def num_steps(self) -> int:
        """Length of the run."""
        return budget(self.config, self.model).num_steps

    def newest_step(self) -> int:
        """Give the newest step that was committed, 0 before there is one; it is not verified."""
        return self._patiently(lambda: ([0, *committed_steps(self.folder)])[-1])

    def record(self, failure: Failure, decision: Decision) -> None:
        """Record a failure of the group among the events of the run."""
        if failure.cause is Cause.GROWTH:
            self._patiently(lambda: append_event(self.folder, "growth"))
            return
        facts = {"cause": failure.cause.value, "rank": failure.rank, "again": decision.again}
        self._patiently(lambda: append_event(self.folder, "failure", **facts))

    def begin(self, device_batch_size: int) -> Dataset:
        """Pick the step to start from, number the attempt, and give the stream from there on.

        Runs in Ray Train's controller before every start of the group, like all methods above.
        """
        return self._patiently(lambda: self._begin(device_batch_size))

    def _patiently(self, work: Callable[[], T]) -> T:
        """Call what reads or writes the run's folder, for as long as storage may fail."""

        def look_and_work() -> T:
            self.folder.check_present()
            return work()

        return with_patience(look_and_work, self.config.storage_patience_seconds, str(self.folder))

    def _begin(self, device_batch_size: int) -> Dataset:
        folder = self.folder
        step = newest_verified_step(folder) or 0
        cursor = start_cursor(folder, step)
        attempt = folder.run.begin_attempt(STAGE, step, device_batch_size=device_batch_size)
        append_event(folder, "begin", attempt=attempt, step=step)
        logger.info(
            "attempt %d starts %s",
            attempt,
            f"from the checkpoint of step {step}" if step else "anew",
        )
        ray.get(self.pacer.reset.remote(cursor.position, cursor.row))
        rows = (self.num_steps - step + SPARE_STEPS) * self.layout.rows_per_step
        start = StreamStart(
            cursor=cursor,
            padding_blocks=self.layout.padding_blocks(step, self.resources.num_workers),
            num_units=self.plan.num_units_for(rows, self.bytes_per_token),
            num_readers=self.resources.num_readers,
        )
        return stream(self.plan, self.layout, start, self.pacer)

    def work(self, world: RayWorld, shard: DataIterator) -> dict[str, Any]:  # Any: JSON
        """Train on this worker; gives what the driver tells the user at the end."""
        state = self.folder.run.read_state()
        start_step = int(state["start_step"])
        share = Share(
            rank=world.rank,
            world_size=world.world_size,
            padding_blocks=self.layout.padding_blocks(start_step, self.resources.num_workers),
        )
        pin = world.device.type == "cuda"
        steps = step_rows(blocks_of(shard, self.layout), self.layout, share, pin=pin)
        config = replace(self.config, device_batch_size=int(state["device_batch_size"]))
        job = replace(self, config=config)
        return run_worker(job, world, steps, attempt=int(state["attempt"]), start_step=start_step)


def run_worker(
    job: PretrainJob, world: World, steps: Iterator[StepRows], *, attempt: int, start_step: int
) -> dict[str, Any]:  # Any: JSON
    """Build the state, resume it, train, and let rank 0 write some samples."""
    config, folder = job.config, job.folder
    state = build_state(config, world)
    checkpointer = Checkpointer(
        folder,
        world,
        attempt=attempt,
        facts=checkpoint_facts(job),
        policy=SavePolicy(
            config.keep_last,
            config.keep_every,
            is_wanted=partial(awaits_evaluation, folder, config.core_every),
            patience_seconds=config.storage_patience_seconds,
        ),
    )
    if start_step:
        checkpointer.restore(state, start_step)
    leave_out(state, folder)
    # Before the stream is opened: its readers would compete with what measures this CPU's peak.
    loop = loop_config(job, world)
    # Every rank must have opened its part of the stream before the first collective.
    first = next(steps)
    account = open_account(folder, start_step) if world.rank == 0 else Account(time.time())
    metrics = open_metrics(job, world, start_step)
    validation = Validation(
        job.plan.validation_rows(validation_rows(config)),
        job.plan.tokenizer.token_lengths,
        world,
        loop.device_batch_size,
    )
    gc.freeze()  # what exists now lives as long as the run
    train(state, _chain(first, steps), validation, loop, world, checkpointer, metrics, account)
    metrics.close()
    if world.rank != 0:
        return {}
    return {"samples": write_samples(job, state), "peak_memory_bytes": peak_memory(world.device)}


def awaits_evaluation(folder: StageFolder, core_every: int | None, step: int) -> bool:
    """Say whether a step is still to be evaluated, and must not be deleted before."""
    if core_every is None or step % core_every:
        return False
    return not SavedModel(folder, step).is_evaluated()


def _chain(first: StepRows, rest: Iterator[StepRows]) -> Iterator[StepRows]:
    yield first
    yield from rest


def build_state(config: PretrainConfig, world: World) -> TrainState:
    """Give model and optimizer on this rank's device, with initial weights."""
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    else:
        keep_freed_memory()
    assert config.dtype, "decided"
    model = GPT(model_config(config), DTYPES[config.dtype])
    model.init_weights(config.seed)
    model.to(world.device)
    optimizer = MuonAdamW(model, optimizer_config(config, model.config), world)
    if not config.eager and can_compile(world.device):
        model.compile()
        optimizer.compile()
    elif not config.eager:
        logger.warning("no C++ compiler was found, so nothing is compiled and training is slower")
    return TrainState(model, optimizer, guard=StepGuard(config.skip_sigmas or None))


def checkpoint_facts(job: PretrainJob) -> dict[str, Any]:  # Any: JSON
    """Say what a checkpoint must share with the run that loads it."""
    return {
        "model": job.model.to_json(),
        "tokenizer_hash": job.plan.tokenizer.hash,
        "data_hash": job.plan.hash,
    }


def open_metrics(job: PretrainJob, world: World, start_step: int) -> MetricsLogger:
    """Open the logs on rank 0; on other ranks, one that writes nothing."""
    if world.rank != 0:
        return MetricsLogger(None, last_step=start_step)
    project = job.config.wandb_project
    wandb = start_wandb(project, job.folder, to_json(job.config)) if project else None
    return MetricsLogger(job.folder, last_step=start_step, wandb=wandb)


def loop_config(job: PretrainJob, world: World) -> LoopConfig:
    """Decide what the loop needs to know."""
    config = job.config
    minutes = config.save_every_minutes
    assert config.validate_every, "decided"
    assert config.device_batch_size, "decided"
    assert config.dtype, "decided"
    return LoopConfig(
        schedule=schedule(config, job.num_steps),
        device_batch_size=config.device_batch_size,
        save=SaveConfig(
            every_steps=config.save_every,
            every_seconds=None if minutes is None else 60 * minutes,
            multiples_of=config.core_every,
            history=failure_history(read_events(job.folder)),
        ),
        validate_every=config.validate_every,
        flops_per_token=flops_per_token(job.model),
        peak_flops=known_peak(job, world) or peak_flops(world.device, DTYPES[config.dtype]),
        is_empty=lambda position: not len(job.plan.pack(position).rows),
        max_skipped_steps=config.max_skipped_steps,
        max_rollbacks=config.max_rollbacks,
    )


def known_peak(job: PretrainJob, world: World) -> float | None:
    """Give the peak that an earlier start has measured: on a CPU that takes a second.

    Only rank 0 writes down the utilization that is counted against it.
    """
    if world.rank != 0:
        return math.inf
    if world.device.type == "cuda":
        return None
    records = read_metrics(job.folder.fs, job.folder.path("metrics.jsonl"))
    return records[-1].get("train/peak_flops") if records else None


def validation_rows(config: PretrainConfig) -> int:
    """Count the rows of validation text that are used."""
    assert config.validation_tokens, "decided"
    assert config.max_seq_len, "decided"
    return max(1, config.validation_tokens // config.max_seq_len)


def write_samples(job: PretrainJob, state: TrainState) -> list[tuple[str, str]]:
    """Let the model continue some prompts."""
    tokenizer = job.plan.tokenizer
    began = time.monotonic()
    samples = []
    for seed, prompt in enumerate(SAMPLE_PROMPTS):
        new = generate(
            state.model,
            [tokenizer.bos_id, *tokenizer.encode(prompt)],
            SAMPLE_TOKENS,
            temperature=SAMPLE_TEMPERATURE,
            top_k=SAMPLE_TOP_K,
            seed=seed,
        )
        samples.append((prompt, tokenizer.decode(new)))
    logger.info("sampled %d texts in %.1f s", len(samples), time.monotonic() - began)
    return samples


def peak_memory(device: torch.device) -> int:
    """Give the most memory this worker has used: of the GPU, or resident on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
