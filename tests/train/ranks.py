"""Real processes that train together: a gloo group on this machine's loopback."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nanoray.train.world import LocalWorld

MOST_RANKS = 3
TIMEOUT = timedelta(seconds=60)
PRELOADED = ["torch.distributed", "pyarrow.dataset", "nanoray.train.loop", "tests.train.tiny_run"]

Results = list[Any]  # Any: what the function of the ranks gives


class GroupWorld(LocalWorld):
    """One of several ranks on the CPU; whether a process group exists is for others to see to."""

    def __init__(self, rank: int, world_size: int) -> None:
        super().__init__()
        self.rank, self.world_size = rank, world_size


def process_context() -> multiprocessing.context.ForkServerContext:
    """Give fresh single-threaded processes for which torch is imported only once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Ranks:
    """A few waiting processes; `run` makes a process group of some of them."""

    def __init__(self) -> None:
        self.pool = _start_pool()

    def run(self, work: Callable[..., Any], world_size: int, *args: Any) -> Results:
        """Call `work(world, *args)` on each rank, and give the results in the order of the ranks.

        Results travel as pickles: NumPy arrays or plain values, not tensors.
        """
        with tempfile.TemporaryDirectory() as folder:
            calls = [
                self.pool.submit(_join_and_work, f"{folder}/group", rank, world_size, work, args)
                for rank in range(world_size)
            ]
            errors = [error for call in calls if (error := call.exception())]
        if any(isinstance(error, BrokenProcessPool) for error in errors):
            self.pool = _start_pool()  # the next test shall not suffer for this one
        if errors:  # of a rank that fails the others say only that it went away
            raise min(errors, key=lambda error: "closed by peer" in str(error))
        return [call.result() for call in calls]

    def close(self) -> None:
        """End the processes."""
        self.pool.shutdown()


def _start_pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(MOST_RANKS, mp_context=process_context())


def _join_and_work(
    meeting_point: str, rank: int, world_size: int, work: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    try:
        return work(GroupWorld(rank, world_size), *args)
    finally:
        dist.destroy_process_group()
