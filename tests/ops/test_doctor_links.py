from pathlib import Path

import pytest

from nanoray.ops.doctor_links import NodeLinks, line_rate, own_links, slowest


@pytest.mark.parametrize(
    ("text", "gbits"),
    [("400 Gb/sec (4X NDR)\n", 400), ("100 Gb/sec (4X EDR)", 100), ("", 0), ("unknown", 0)],
)
def test_line_rates_are_read_as_the_kernel_writes_them(text: str, gbits: float) -> None:
    assert line_rate(text) == gbits


def put(system: Path, path: str, text: str) -> None:
    """Write a file as the kernel shows it."""
    file = system / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_ports_of_the_fabric_are_added_up_and_the_fastest_card_counts(tmp_path: Path) -> None:
    for port in (0, 1):
        put(tmp_path, f"infiniband/rdma{port}/ports/1/rate", "100 Gb/sec (4X EDR)\n")
    for name, speed in (("eth0", "50000"), ("eth1", "200000"), ("eth2", "-1")):
        put(tmp_path, f"net/{name}/speed", f"{speed}\n")
        put(tmp_path, f"net/{name}/device/vendor", "0x1ae0\n")
    put(tmp_path, "dmi/id/sys_vendor", "Amazon EC2\n")

    assert own_links(tmp_path) == NodeLinks(200.0, 200.0, is_aws=True)


def test_the_end_of_a_bridge_is_no_card(tmp_path: Path) -> None:
    put(tmp_path, "net/eth0/speed", "10000\n")
    put(tmp_path, "dmi/id/sys_vendor", "Google\n")

    assert own_links(tmp_path) == NodeLinks()


def test_the_slowest_node_decides() -> None:
    fast, slow = NodeLinks(3200.0, 100.0, is_aws=True), NodeLinks(0.0, 50.0, is_aws=True)

    assert slowest([fast, slow]) == slow
    assert slowest([]) == NodeLinks()
