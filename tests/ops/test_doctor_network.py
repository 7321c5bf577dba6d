from multiprocessing import get_context

import pytest

from nanoray.ops.doctor_network import (
    AllReduce,
    BenchWorker,
    bus_bandwidth,
    expected_between,
    expected_inside,
)


def test_bus_bandwidth_is_that_of_nccl_tests():
    """A line that nccl-tests printed for 8 A100 of a p4d.24xlarge (NVIDIA/nccl issue 527)."""
    assert bus_bandwidth(1_073_741_824, 8142.6e-6, 8) == pytest.approx(230.77e9, rel=1e-4)


def test_what_to_expect_follows_from_the_gpus_name():
    assert expected_inside("NVIDIA H100 80GB HBM3") == 370e9
    assert expected_inside("NVIDIA H100 PCIe") == 115e9
    assert expected_inside("NVIDIA GeForce RTX 3090") is None


def test_a_nodes_own_ports_count_more_than_the_table():
    assert expected_between("NVIDIA H100 80GB HBM3", 0.0) == 400e9
    assert expected_between("NVIDIA H100 80GB HBM3", 1600.0) == 200e9
    assert expected_between("NVIDIA GeForce RTX 3090", 0.0) is None


def test_a_worker_measures_its_speed():
    assert BenchWorker().flops() > 1e8


def work(port: int, rank: int) -> AllReduce:
    """Be one of two workers in a process of its own."""
    worker = BenchWorker()
    worker.join("127.0.0.1", port, rank, 2, [[0, 1]])
    result = worker.all_reduce(0)
    worker.leave()
    return result


@pytest.mark.slow
def test_two_processes_measure_their_all_reduce():
    port = BenchWorker().free_port()

    with get_context("spawn").Pool(2) as pool:
        one, other = pool.starmap(work, [(port, 0), (port, 1)])

    assert one.num_ranks == other.num_ranks == 2
    assert 0 < one.latency_seconds < 1
    assert one.bytes_per_second > 1e6
