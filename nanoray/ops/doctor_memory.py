"""Does the real model fit at the real batch? One step of it, on one device."""

import gc
import resource
import time
from dataclasses import dataclass

import psutil
import torch

from nanoray.data.batches import StepRows
from nanoray.data.blocks import RECORD_FIELDS
from nanoray.model.gpt import DTYPES, GPT
from nanoray.model.memory import memory_per_gpu
from nanoray.stages.training_job import Recipe
from nanoray.train.device import can_compile, own_device, prepare_process
from nanoray.train.optimizer import MuonAdamW
from nanoray.train.state import TrainState
from nanoray.train.step import StepConfig, train_step
from nanoray.train.world import LocalWorld

CPU_SHARE = 0.8
"""Of the free memory of a machine that the step may take: the rest keeps the machine alive."""


@dataclass(frozen=True)
class StepFacts:
    """What one step took on one device."""

    device_batch_size: int
    peak_bytes: int = 0
    capacity_bytes: int = 0
    """Of the GPU, or what was free on the machine."""
    seconds: float = 0.0
    fits: bool = True
    largest_fitting: int = 0
    """Rows that fit, where those asked for do not; 0 if not even one does."""
    was_tried: bool = True
    """False where an estimate already said that it cannot fit."""


def estimate_bytes(
    recipe: Recipe, device_batch_size: int, world_size: int = 1, *, on_gpu: bool = False
) -> float:
    """Estimate what a step takes on each of so many devices; a CPU has no context of CUDA."""
    parts = memory_per_gpu(recipe.model, device_batch_size, world_size, recipe.dtype)
    return parts.total if on_gpu else parts.total - parts.context


def expected_peak(measured: float, recipe: Recipe, device_batch_size: int, workers: int) -> float:
    """Correct what one device alone took for the others: state is shared, and stacks are padded."""
    alone = memory_per_gpu(recipe.model, device_batch_size, 1).total
    return measured - alone + memory_per_gpu(recipe.model, device_batch_size, workers).total


def halvings(device_batch_size: int) -> list[int]:
    """List the smaller batches that divide the same step, largest first."""
    sizes = [device_batch_size]
    while sizes[-1] % 2 == 0:
        sizes.append(sizes[-1] // 2)
    return [*sizes[1:], *([1] if sizes[-1] > 1 else [])]


def try_step(recipe: Recipe, *, eager: bool, threads: int) -> StepFacts:
    """Make one step at the device batch of a recipe; runs in a process of its own.

    On a CPU the process is bounded before, so that it and not the machine runs out of memory.
    """
    size = recipe.device_batch_size
    if own_device().type == "cuda":
        return try_on_gpu(recipe, eager=eager)
    prepare_process(threads)
    free = psutil.virtual_memory().available
    allowed = CPU_SHARE * free
    if estimate_bytes(recipe, size) > allowed:
        fitting = [b for b in halvings(size) if estimate_bytes(recipe, b) <= allowed]
        need = int(estimate_bytes(recipe, size))
        return StepFacts(size, need, free, 0.0, False, max(fitting, default=0), was_tried=False)
    return try_within(recipe, int(allowed))


def try_within(recipe: Recipe, allowed_bytes: int) -> StepFacts:
    """Make one step on the CPU; this process can allocate no more than so much from here on."""
    size, free = recipe.device_batch_size, psutil.virtual_memory().available
    bound_memory(allowed_bytes)
    before = psutil.Process().memory_info().rss
    try:
        # Compiled it takes less, but longer than a doctor may: what fits so fits the run.
        seconds = make_step(recipe, size, torch.device("cpu"), eager=True)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        small = [b for b in halvings(size) if 2 * estimate_bytes(recipe, b) <= allowed_bytes]
        return StepFacts(size, allowed_bytes, free, 0.0, False, max(small, default=0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return StepFacts(size, max(0, peak), free, seconds)


def bound_memory(more_bytes: int) -> None:
    """Let this process allocate so much more; then its allocations fail."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    own = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (own + more_bytes, most))


def try_on_gpu(recipe: Recipe, *, eager: bool) -> StepFacts:
    """Make one step on the GPU, then smaller ones until one fits."""
    device = torch.device("cuda")
    capacity = torch.cuda.get_device_properties(device).total_memory
    size = recipe.device_batch_size
    for batch in [size, *halvings(size)]:
        seconds = step_or_none(recipe, batch, device, eager=eager)
        if seconds is None:
            gc.collect()
            torch.cuda.empty_cache()
            continue
        free, _ = torch.cuda.mem_get_info()  # the allocator keeps what the peak took
        peak = capacity - free
        if batch == size:
            return StepFacts(size, peak, capacity, seconds)
        return StepFacts(size, peak, capacity, seconds, False, batch)
    return StepFacts(size, capacity, capacity, 0.0, False, 0)


def step_or_none(recipe: Recipe, size: int, device: torch.device, *, eager: bool) -> float | None:
    """Make one step; None if the GPU has too little memory.

    A function of its own: the error holds the frames of the step, and with them its tensors.
    """
    try:
        return make_step(recipe, size, device, eager=eager)
    except torch.cuda.OutOfMemoryError:
        return None


def make_step(recipe: Recipe, size: int, device: torch.device, *, eager: bool) -> float:
    """Build the model and make one step of random tokens; gives the seconds of the step."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    world = LocalWorld(device)
    model = GPT(recipe.model, DTYPES[recipe.dtype])
    model.init_weights(0)
    model.to(device)
    optimizer = MuonAdamW(model, recipe.optimizer, world)
    if not eager and can_compile(device):
        model.compile()
        optimizer.compile()
    state = TrainState(model, optimizer)
    config = StepConfig(recipe.schedule, size, is_empty=lambda position: False)
    began = time.perf_counter()
    train_step(state, random_rows(recipe, size), config, world)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def random_rows(recipe: Recipe, size: int) -> StepRows:
    """Give the rows of a step that is one forward pass, as if they were a whole unit."""
    shape = (size, recipe.model.max_seq_len + 1)
    rows = torch.randint(0, recipe.model.vocab_size, shape, dtype=torch.int32)
    record = torch.zeros(size, RECORD_FIELDS, dtype=torch.int64)
    record[:, 1], record[:, 2] = torch.arange(size), size
    return StepRows(rows, record, 0.0)
