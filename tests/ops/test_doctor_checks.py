from dataclasses import replace

import pytest

from nanoray.ops.doctor_checks import (
    check_between,
    check_disks,
    check_gpu_health,
    check_gpus,
    check_inside,
    check_nodes,
    check_object_store,
    check_speed,
    check_token,
    check_versions,
)
from nanoray.ops.doctor_findings import Status
from nanoray.ops.doctor_gpu import Gpu, GpuReport
from nanoray.ops.doctor_links import NodeLinks
from nanoray.ops.doctor_network import AllReduce
from nanoray.ops.doctor_node import Node, NodeFacts, Space

GB = 10**9
VERSIONS = {"Ray": "2.60.0", "Python": "3.11.7", "torch": "2.13.0", "nanoray": "0.1.0"}
FACTS = NodeFacts(VERSIONS, Space(1000 * GB, 500 * GB), Space(64 * GB, 64 * GB), 100 * GB)
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "550.90.07", 40, 1980, 1980, (), 0)


def node(name: str, num_gpus: int = 0, store: float = 2 * GB) -> Node:
    """Give a node with eight CPUs."""
    return Node(name * 8, name, name, 8.0, num_gpus, store, "/tmp/ray")


def with_gpus(
    *gpus: Gpu, problems: tuple[str, ...] = (), xids: tuple[str, ...] | None = ()
) -> NodeFacts:
    """Give a node's facts with GPUs."""
    return replace(FACTS, gpus=GpuReport(gpus, problems, xids))


def test_a_silent_node_fails():
    finding = check_nodes([node("a"), node("b")], {"b": "no answer for 45 s"})

    assert finding.status is Status.FAILED
    assert "b: no answer for 45 s" in finding.found


def test_another_ray_version_on_one_node_is_named():
    other = replace(FACTS, versions={**VERSIONS, "Ray": "2.59.1"})

    finding = check_versions(VERSIONS, {"a": FACTS, "b": other, "c": FACTS})

    assert finding.status is Status.FAILED
    assert finding.found == "Ray 2.59.1 on b, 2.60.0 on 3 others"
    assert "Install the same" in finding.remedy


def test_a_driver_that_differs_from_all_nodes_is_named():
    finding = check_versions({**VERSIONS, "Python": "3.12.1"}, {"a": FACTS, "b": FACTS})

    assert finding.found == "Python 3.12.1 on the driver, 3.11.7 on a, b"


def test_nodes_without_gpus_need_no_nccl():
    gpu_node = replace(FACTS, versions={**VERSIONS, "NCCL": "2.27.3"})
    older = replace(FACTS, versions={**VERSIONS, "NCCL": "2.21.5"})

    assert check_versions(VERSIONS, {"head": FACTS, "a": gpu_node}).status is Status.OK
    differing = check_versions(VERSIONS, {"a": gpu_node, "b": older})
    assert differing.status is Status.FAILED
    assert "NCCL 2.27.3 on a, 2.21.5 on b" in differing.found


@pytest.mark.parametrize(
    ("needs", "status"), [(True, Status.OK), (False, Status.WARNING), (None, Status.SKIPPED)]
)
def test_a_cluster_without_a_token_is_warned_of(needs: bool | None, status: Status):
    assert check_token(needs).status is status


def test_a_gpu_that_ray_counts_and_nvidia_smi_does_not_show_fails():
    lost = with_gpus(H100, problems=("Unable to determine the device handle for GPU1",))

    finding = check_gpus([node("a", 2)], {"a": lost})

    assert finding.status is Status.FAILED
    assert "a shows 1 of the 2" in finding.found
    assert "GPU1" in finding.found


def test_a_torch_without_cuda_on_a_node_with_gpus_fails():
    versions = {**VERSIONS, "torch": "2.13.0+cpu", "NCCL": "none"}

    finding = check_gpus([node("a", 1)], {"a": replace(with_gpus(H100), versions=versions)})

    assert finding.status is Status.FAILED
    assert "a: torch 2.13.0+cpu is a build without CUDA" in finding.found


def test_gpus_of_another_kind_driver_or_number_are_warned_of():
    nodes = [node("a", 1), node("b", 1), node("c", 2)]
    a100 = replace(H100, name="NVIDIA A100-SXM4-80GB", driver="535.1")
    facts = {"a": with_gpus(H100), "b": with_gpus(a100), "c": with_gpus(H100, H100)}

    finding = check_gpus(nodes, facts)

    assert finding.status is Status.WARNING
    assert "A100-SXM4-80GB on b" in finding.found
    assert "driver 535.1 on b" in finding.found
    assert "count 2 on c" in finding.found


def test_equal_gpus_are_counted():
    facts = {"a": with_gpus(H100, H100), "b": with_gpus(H100, H100)}

    finding = check_gpus([node("a", 2), node("b", 2)], facts)

    assert (finding.status, finding.found[:25]) == (Status.OK, "4 x NVIDIA H100 80GB HBM3")


def test_without_gpus_their_checks_are_left_out():
    assert check_gpus([node("a")], {"a": FACTS}).status is Status.SKIPPED
    assert check_gpu_health({"a": FACTS}).status is Status.SKIPPED


@pytest.mark.parametrize(
    ("facts", "status", "text"),
    [
        (with_gpus(H100), Status.OK, "40 C at most"),
        (with_gpus(replace(H100, ecc_errors=2)), Status.FAILED, "a GPU 0: 2 ECC errors"),
        (with_gpus(H100, xids=("Xid 79 of 0000:3b:00",)), Status.WARNING, "a: Xid 79"),
        (with_gpus(replace(H100, throttled=("power brake",))), Status.WARNING, "power brake"),
        (with_gpus(replace(H100, celsius=91)), Status.WARNING, "91 C"),
        (with_gpus(H100, xids=None), Status.WARNING, "kernel's log of a could not be read"),
    ],
)
def test_ailing_gpus_are_named(facts: NodeFacts, status: Status, text: str):
    finding = check_gpu_health({"a": facts})

    assert finding.status is status
    assert text in finding.found


def test_a_gpu_that_is_a_tenth_slower_than_the_median_is_named():
    flops = {"a": [700e12, 705e12], "b": [702e12, 620e12]}

    finding = check_speed(flops, "NVIDIA H100 80GB HBM3")

    assert finding.status is Status.WARNING
    assert "b GPU 1 makes 620 TFLOP/s, 12 % below" in finding.found


def test_gpus_that_are_all_slow_are_compared_with_their_data_sheet():
    finding = check_speed({"a": [300e12] * 8}, "NVIDIA H100 80GB HBM3")

    assert finding.status is Status.WARNING
    assert "30 % of the data sheet's 989" in finding.found


def test_cpus_may_differ_by_more():
    assert check_speed({"a": [80e9], "b": [65e9]}, None).status is Status.OK
    assert check_speed({"a": [80e9], "b": [80e9], "c": [30e9]}, None).status is Status.WARNING


def test_slow_nvlink_is_named():
    inside = {"a": AllReduce(8, 20e-6, 360e9), "b": AllReduce(8, 21e-6, 40e9)}

    finding = check_inside(inside, "NVIDIA H100 80GB HBM3")

    assert finding.status is Status.WARNING
    assert finding.found == (
        "b: 40 GB/s bus bandwidth at least, 21 us for 8 bytes; NVLink gives 370 GB/s"
    )


def test_on_cpus_the_all_reduce_is_reported_without_a_verdict():
    between = AllReduce(2, 300e-6, 1e8)

    assert check_inside({"a": between}, None).status is Status.OK
    assert check_between(between, None, NodeLinks()).status is Status.OK
    assert check_between(None, None, NodeLinks()).status is Status.SKIPPED


def test_nccl_over_sockets_is_found_by_its_bandwidth():
    sockets, efa = AllReduce(16, 80e-6, 8e9), AllReduce(16, 60e-6, 320e9)

    finding = check_between(sockets, H100.name, NodeLinks(3200.0, 100.0, is_aws=True))

    assert finding.status is Status.WARNING
    assert "that NCCL uses EFA and not sockets" in finding.remedy
    assert check_between(efa, H100.name, NodeLinks(3200.0)).status is Status.OK
    assert check_between(sockets, H100.name, NodeLinks(100.0)).status is Status.OK


def test_a_node_of_aws_without_efa_is_told_what_it_lacks():
    finding = check_between(AllReduce(16, 80e-6, 8e9), H100.name, NodeLinks(0, 100.0, is_aws=True))

    assert finding.status is Status.WARNING
    assert "has 400 GB/s by EFA, and here is no EFA port" in finding.found
    assert "EFA interface" in finding.remedy


def test_ethernet_elsewhere_is_measured_by_its_own_speed_and_nobody_is_sent_to_efa():
    fast, slow = AllReduce(16, 80e-6, 20e9), AllReduce(16, 80e-6, 5e9)

    good, bad = (check_between(each, H100.name, NodeLinks(0, 200.0)) for each in (fast, slow))
    unknown = check_between(slow, H100.name, NodeLinks())

    assert (good.status, bad.status, unknown.status) == (Status.OK, Status.WARNING, Status.OK)
    assert "the line rate of Ethernet is 25 GB/s" in bad.found
    assert "what the network can do is not known" in unknown.found
    assert not [f for f in (good, bad, unknown) if "EFA" in f.found + f.remedy]


def test_a_node_with_little_disk_is_named():
    little = replace(FACTS, temp=Space(200 * GB, 6 * GB + GB))
    full = replace(FACTS, temp=Space(200 * GB, 2 * GB))

    assert check_disks({"a": FACTS}).status is Status.OK
    warned, failed = check_disks({"a": FACTS, "b": full}), check_disks({"a": FACTS, "c": full})
    assert "b is 99 % full, 2.0 GB left" in warned.found
    assert failed.status is Status.FAILED
    finding = check_disks({"a": FACTS, "b": replace(little, temp=Space(20 * GB, 7 * GB))})
    assert (finding.status, finding.found) == (Status.WARNING, "b has 7.0 GB left")


def test_a_store_that_is_larger_than_shared_memory_is_named():
    small = replace(FACTS, shared_memory=Space(64 * 10**6, 64 * 10**6))

    finding = check_object_store([node("a"), node("b")], {"a": FACTS, "b": small}, 1e6)

    assert finding.status is Status.WARNING
    assert "b has 0.1 GB for a store of 2.0 GB" in finding.found
    assert "--shm-size" in finding.remedy


def test_a_store_that_does_not_hold_the_stream_is_named():
    nodes = [node("a"), node("b", store=10**8)]

    finding = check_object_store(nodes, {"a": FACTS, "b": FACTS}, 3e8)

    assert finding.status is Status.WARNING
    assert finding.found == "0.10 GB at least, on b; the stream needs 0.30 GB"
    assert check_object_store(nodes, {"a": FACTS, "b": FACTS}, 3e7).status is Status.OK
