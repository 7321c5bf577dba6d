"""How fast devices compute and talk to each other: one bench worker for each, without Ray.

Bus bandwidth is what nccl-tests calls so: comparable with the speed of the hardware, whatever the
number of ranks. The expected values are measurements of others, each with its source.
"""

import datetime
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from nanoray.cluster.network import choose_interface
from nanoray.train.device import own_device

JOIN_SECONDS = 30.0
"""How long workers wait for each other: a port that a firewall closes is never answered."""
LATENCY_BYTES = 8
GPU_BYTES, CPU_BYTES = 2**28, 2**24
"""An all-reduce on GPUs comes near its full bandwidth from 256 MB on."""
LATENCY_ROUNDS, BANDWIDTH_ROUNDS = 20, 5
GPU_MATRIX, CPU_MATRIX = 8192, 1024
GPU_SECONDS, CPU_SECONDS = 1.0, 0.5

INSIDE_NODE: tuple[tuple[str, float], ...] = (
    ("h100 pcie", 115e9),  # two GPUs on an NVLink bridge, NVIDIA/nccl issue 1161
    ("h800", 160e9),  # 215 measured at the best size, NVIDIA/nccl issue 1374
    ("h100 nvl", 115e9),  # a bridge too
    ("h100", 370e9),  # rings; up to 480 with NVLink SHARP, NVIDIA/nccl-tests issue 212
    ("h200", 370e9),  # the same NVLink
    ("a100-sxm", 230e9),  # 8 GPUs of a p4d.24xlarge, NVIDIA/nccl issue 527
)
"""Bus bandwidth of an all-reduce over NVLink in bytes/s, by a part of the GPU's name."""
EFA_NODE: tuple[tuple[str, float], ...] = (
    ("h100", 400e9),  # p5.48xlarge: 3200 Gbit/s
    ("h200", 400e9),  # p5e, p5en: 3200 Gbit/s
    ("b200", 400e9),  # p6-b200: 3200 Gbit/s
    ("a100", 50e9),  # p4d, p4de: 400 Gbit/s; 57e9 measured on two nodes, NVIDIA/nccl issue 527
)
"""Line rate of AWS's nodes in bytes/s, by a part of the GPU's name (AWS's pages of the types)."""
LINE_RATE_SHARE = 0.8
"""Of a node's line rate, what a plan expects of large rings: assumed, among what others report.

0.92 to 0.96 is what NVIDIA expects of cards with 400 Gbit/s (NVIDIA/nccl-tests issue 290); 0.86 had
two nodes of A100 on InfiniBand (NVIDIA/nccl issue 1048), 0.6 four of them on EFA (527), 0.5 an
all-gather over 32 nodes of H100, if its eight cards had 400 Gbit/s each (1218).
"""


@dataclass(frozen=True)
class AllReduce:
    """What an all-reduce over a group of workers takes."""

    num_ranks: int
    latency_seconds: float
    """Of 8 bytes."""
    bytes_per_second: float
    """Bus bandwidth of a large one."""


def bus_bandwidth(num_bytes: int, seconds: float, num_ranks: int) -> float:
    """Give what each link carries: 2 (n-1)/n times the bytes (nccl-tests, doc/PERFORMANCE.md)."""
    return 2 * (num_ranks - 1) / num_ranks * num_bytes / seconds


def expected_inside(gpu: str) -> float | None:
    """Give the bus bandwidth that NVLink should give inside a node; None for an unknown GPU."""
    return _first(INSIDE_NODE, gpu)


def expected_between(gpu: str, fabric_gbits: float) -> float | None:
    """Give the line rate of a node in bytes/s: of its own ports, else of AWS's node of that kind.

    Args:
        gpu: name of the GPUs.
        fabric_gbits: line rate of the node's ports, 0 where the kernel lists none.
    """
    return fabric_gbits * 1e9 / 8 if fabric_gbits else _first(EFA_NODE, gpu)


def _first(table: Sequence[tuple[str, float]], gpu: str) -> float | None:
    return next((value for part, value in table if part in gpu.lower()), None)


class BenchWorker:
    """One process with one GPU, or one thread of a CPU."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.device = own_device()
        self.groups: list[dist.ProcessGroup] = []

    def free_port(self) -> int:
        """Find a port for the others to meet at."""
        with socket.create_server(("", 0)) as server:
            return int(server.getsockname()[1])

    def flops(self) -> float:
        """Give the FLOP/s of matrix products: on a GPU the mean, on a CPU the best.

        A GPU's clocks fall when it is hot, which a mean shows; on a CPU others disturb.
        """
        on_gpu = self.device.type == "cuda"
        size, dtype = (GPU_MATRIX, torch.bfloat16) if on_gpu else (CPU_MATRIX, torch.float32)
        a = torch.randn(size, size, device=self.device, dtype=dtype)
        (a @ a).sum().item()  # the first one loads cuBLAS
        times: list[float] = []
        while sum(times) < (GPU_SECONDS if on_gpu else CPU_SECONDS):
            began = time.perf_counter()
            (a @ a)[0, 0].item()
            times.append(time.perf_counter() - began)
        return 2 * size**3 / (statistics.mean(times) if on_gpu else min(times))

    def join(self, host: str, port: int, rank: int, size: int, groups: list[list[int]]) -> None:
        """Meet the other workers, and make the groups that are measured.

        Args:
            host: of the worker of rank 0.
            port: on it.
            rank: of this worker.
            size: how many workers there are.
            groups: the ranks of each; every worker gives the same.
        """
        choose_interface()
        dist.init_process_group(
            "nccl" if self.device.type == "cuda" else "gloo",
            init_method=f"tcp://{host}:{port}",
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=JOIN_SECONDS),
        )
        self.groups = [dist.new_group(ranks) for ranks in groups]

    def all_reduce(self, group: int) -> AllReduce:
        """Measure a group of which this worker is one; all of them have to be called."""
        members = self.groups[group]
        num_ranks = dist.get_world_size(members)
        num_bytes = GPU_BYTES if self.device.type == "cuda" else CPU_BYTES
        small = self._seconds(LATENCY_BYTES, LATENCY_ROUNDS, members)
        large = self._seconds(num_bytes, BANDWIDTH_ROUNDS, members)
        return AllReduce(num_ranks, small, bus_bandwidth(num_bytes, large, num_ranks))

    def _seconds(self, num_bytes: int, rounds: int, group: dist.ProcessGroup) -> float:
        """Give the median time of an all-reduce; the first one opens connections."""
        values = torch.ones(num_bytes // 4, device=self.device)
        times = []
        for _ in range(rounds + 1):
            dist.barrier(group=group)
            began = time.perf_counter()
            dist.all_reduce(values, group=group)
            values[0].item()  # waits for a GPU
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def leave(self) -> None:
        """Leave the others."""
        if dist.is_initialized():
            dist.destroy_process_group()
