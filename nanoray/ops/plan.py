"""What a run will be, before any GPU is touched: size, length, memory, disk, time and money."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from nanoray.config import InputError, flag, worker_range
from nanoray.credentials import without_secrets
from nanoray.data.blocks import layout_for
from nanoray.data.datasets import BYTES_PER_TOKEN, DATASETS, EMBEDDED, shards_for
from nanoray.data.manifest import make_manifest
from nanoray.model.memory import memory_per_gpu
from nanoray.model.scaling import flops_per_token, gpu_peak_flops, num_parameters
from nanoray.ops.communication import (
    GPUS_PER_NODE,
    Work,
    communication_facts,
    communication_text,
    links_of,
    workers_on,
)
from nanoray.prices import dollars_per_hour
from nanoray.progress import duration
from nanoray.stages.pretrain_config import (
    PretrainConfig,
    budget,
    check_rows,
    checkpoint_bytes,
    decide,
    model_config,
    most_checkpoints,
    rates,
    rows_per_step,
)

DEFAULT_DATASET = "fineweb-edu"


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Say what a pretraining run will take; the flags are those of jobs/pretrain.py."""

    pretrain: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(
        default_factory=PretrainConfig
    )
    """The run that is planned."""
    gpu: str = "h100"
    """Kind of GPU, by its name: h100, h200, a100, b200, ..."""
    mfu: float = 0.474
    """Model FLOPs utilization that is expected; d34 had 0.474 on H100."""
    nodes: int | None = None
    """Also say how the run scales over so many nodes, with 8 GPUs each unless --num-workers."""
    network_gbit: float | None = None
    """Line rate of a node's network in Gbit/s; by default that of AWS's, 3,200 with H100."""
    inside_gbyte: float | None = None
    """Bus bandwidth in a node in GB/s; by default what jobs/doctor.py expects, 370 with H100."""
    json: bool = False
    """Print JSON only."""

    def __post_init__(self) -> None:
        for name in ("network_gbit", "inside_gbyte"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(
                    f"{flag(name)} {value} is not a bandwidth. Give a number above 0, or leave it "
                    "out."
                )
            if value is not None and self.nodes is None:
                raise InputError(f"{flag(name)} {value} is of nodes. Give --nodes besides.")
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu {self.mfu} is not a utilization. Give a number from 0 to 1.")


def plan(config: PlanConfig) -> str:
    """Work out the plan, as text or JSON.

    Raises:
        InputError: numbers that do not fit together, or a GPU whose speed is not known.
    """
    decided = decide(config.pretrain, on_gpu=True, dtype="bfloat16")
    assert decided.dtype, "decided"
    peak = gpu_peak_flops(config.gpu, decided.dtype)
    if peak is None:
        raise InputError(
            f"--gpu {config.gpu} is not in the table. Give h100, h200, a100, b200, l40s ..."
        )
    if config.nodes is None:
        facts = plan_facts(decided, config, peak)
    else:
        facts = plan_on_nodes(decided, config, peak, config.nodes)
    return json.dumps(facts, indent=1) if config.json else as_text(facts)


def plan_facts(run: PretrainConfig, config: PlanConfig, peak: float) -> dict[str, Any]:  # Any: JSON
    """Give every number of the plan."""
    model = model_config(run)
    length = budget(run, model)
    rows = rows_per_step(run)
    asked = worker_range(run.num_workers)
    workers = asked[1] if asked else min(GPUS_PER_NODE, rows)
    check_rows(run, rows, workers)
    assert run.device_batch_size, "decided"
    assert run.dtype, "decided"
    most_rows = layout_for(rows, run.device_batch_size, workers).most_rows(workers)
    memory = memory_per_gpu(model, min(run.device_batch_size, most_rows), workers, run.dtype)
    # The others wait for the worker that has most rows.
    step_flops = most_rows * model.max_seq_len * flops_per_token(model)
    seconds = length.num_steps * step_flops / (config.mfu * peak)
    lr = rates(run, model)
    dataset = run.data if run.data in DATASETS else DEFAULT_DATASET
    text_bytes = length.tokens * BYTES_PER_TOKEN
    shards = shards_for(DATASETS[dataset], text_bytes)
    return {
        "depth": model.num_layers,
        "model_dim": model.model_dim,
        "num_heads": model.num_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_seq_len": model.max_seq_len,
        "parameters": num_parameters(model),
        "flops_per_token": flops_per_token(model),
        "total_batch_tokens": run.total_batch_tokens,
        "num_steps": length.num_steps,
        "tokens": length.tokens,
        "tokens_per_param": length.tokens_per_param,
        "total_flops": length.flops,
        "num_workers": workers,
        "device_batch_size": run.device_batch_size,
        "microbatches_per_step": rows // run.device_batch_size,
        "microbatches_per_worker": math.ceil(most_rows / run.device_batch_size),
        "learning_rates": dataclasses.asdict(lr),
        "memory_per_gpu_bytes": {**dataclasses.asdict(memory), "total": memory.total},
        "checkpoint_bytes": checkpoint_bytes(model),
        "checkpoints_kept_bytes": checkpoint_bytes(model) * most_checkpoints(run, length.num_steps),
        "save_every": run.save_every,
        "gpu": config.gpu,
        "dtype": run.dtype,
        "mfu": config.mfu,
        "tokens_per_second": length.tokens / seconds,
        "seconds_per_step": seconds / length.num_steps,
        "hours": seconds / 3600,
        "dollars": seconds / 3600 * workers * price_of(run, config),
        "dollars_per_gpu_hour": price_of(run, config),
        "dataset": dataset,
        "data_shards": len(shards),
        "data_bytes": len(shards) * DATASETS[dataset].file_bytes_per_shard,
        "data": run.data,
        "text_bytes": text_bytes,
        "embedded_times_read": None if run.data else text_bytes / embedded_bytes(),
    }


def price_of(run: PretrainConfig, config: PlanConfig) -> float:
    """Give the price of a GPU for an hour."""
    return dollars_per_hour(run.dollars_per_gpu_hour, config.gpu)


def plan_on_nodes(
    run: PretrainConfig, config: PlanConfig, peak: float, nodes: int
) -> dict[str, Any]:  # Any: JSON
    """Give every number of the plan, and those of its communication."""
    asked = worker_range(run.num_workers)
    workers = workers_on(nodes, asked[1] if asked else None)
    run = dataclasses.replace(run, num_workers=str(workers))
    assert run.device_batch_size, "decided"
    assert run.dtype, "decided"
    model = model_config(run)
    work = Work(
        model=model,
        rows_per_step=rows_per_step(run),
        device_batch_size=run.device_batch_size,
        row_seconds=flops_per_token(model) * model.max_seq_len / (config.mfu * peak),
        gpus_per_node=workers // nodes,
        num_steps=budget(run, model).num_steps,
        dollars_per_gpu_hour=price_of(run, config),
        dtype=run.dtype,
    )
    links = links_of(config.gpu, config.network_gbit, config.inside_gbyte, work.gpus_per_node)
    told = communication_facts(work, links, nodes)
    return {**plan_facts(run, config, peak), "communication": told}


def embedded_bytes() -> int:
    """Give the size of the text that comes with nanoray, without its part for validation."""
    manifest = make_manifest(EMBEDDED, "text")
    return sum(s.num_bytes for s in manifest.shards if s.path != manifest.validation_shard)


def mfu_of(facts: dict[str, Any]) -> str:  # Any: JSON
    """Say of which peak the MFU is a part, where it is not that of bf16."""
    return " of TF32's peak" if facts["dtype"] == "float32" else ""


def data_text(facts: dict[str, Any]) -> str:  # Any: JSON
    """Say what the run would read, and how much of a public dataset that is."""
    shards = f"{facts['data_shards']:,} shards of {facts['dataset']}"
    size = f"{facts['data_bytes'] / 1e9:.3g} GB"
    if facts["data"] == facts["dataset"]:
        return f"{shards}, {size}"
    if facts["data"] is None:
        times = facts["embedded_times_read"]
        return (
            f"the texts that come with nanoray, read {times:,.{1 if times < 10 else 0}f} times; "
            f"--data {facts['dataset']} gives other text: {shards}, {size}"
        )
    return (
        f"{without_secrets(facts['data'])}: {facts['text_bytes'] / 1e9:.3g} GB of text, as much as "
        f"{shards} have"
    )


def as_text(facts: dict[str, Any]) -> str:  # Any: JSON
    """Write the plan for a person."""
    memory = facts["memory_per_gpu_bytes"]
    lr = facts["learning_rates"]
    every = facts["save_every"]
    saved = f"{every} steps" if every else "1 to 60 minutes, as failures ask for"
    passes, share, workers = (
        facts[name] for name in ("microbatches_per_step", "microbatches_per_worker", "num_workers")
    )
    shared = f"{'at most ' if share * workers > passes else ''}{share} on each of {workers} workers"
    parts = "\n".join(
        f"    {name.replace('_', ' '):<18} {size / 2**30:8.2f} GiB" for name, size in memory.items()
    )
    text = f"""\
model      depth {facts["depth"]}: width 64 x depth = {facts["model_dim"]}, \
{facts["num_heads"]} heads of {facts["head_dim"]}, {facts["vocab_size"]:,} ids
           {facts["parameters"]:,} parameters, {facts["flops_per_token"]:.6e} FLOPs per token
rates      matrices {lr["matrix"]:g}, embedding {lr["embedding"]:.6g}, unembedding \
{lr["unembedding"]:.6g} (x (width / 768)^-0.5)
length     {facts["num_steps"]:,} steps of {facts["total_batch_tokens"]:,} tokens = \
{facts["tokens"]:,} tokens, {facts["tokens_per_param"]:.4g} per parameter
           {facts["total_flops"]:.6e} FLOPs
step       {passes} microbatches of {facts["device_batch_size"]} rows of \
{facts["max_seq_len"]}: {shared}
memory     per GPU, at the peak of a step (estimated):
{parts}
disk       {facts["checkpoint_bytes"] / 1e9:.1f} GB per checkpoint, \
{facts["checkpoints_kept_bytes"] / 1e9:.1f} GB for those kept, one every {saved}
data       {data_text(facts)}
time       {duration(facts["hours"] * 3600)} at {100 * facts["mfu"]:.1f} % MFU{mfu_of(facts)} on \
{facts["num_workers"]} {facts["gpu"]}: {facts["tokens_per_second"]:,.0f} tokens/s, \
{facts["seconds_per_step"]:.3g} s per step
cost       ${facts["dollars"]:,.0f} at ${facts["dollars_per_gpu_hour"]:.2f} per GPU-hour \
(--dollars-per-gpu-hour)"""
    if "communication" not in facts:
        return text
    return f"{text}\n{communication_text(facts['communication'], facts['mfu'])}"
