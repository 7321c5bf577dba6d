"""How fast a node is connected to the others, as far as its kernel tells."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/sys/class")
AWS_VENDOR = "Amazon EC2"


@dataclass(frozen=True)
class NodeLinks:
    """Line rates in Gbit/s, 0 where the kernel tells none."""

    fabric_gbits: float = 0.0
    """Of all InfiniBand, RoCE or EFA ports together."""
    ethernet_gbits: float = 0.0
    """Of the fastest card for Ethernet."""
    is_aws: bool = False
    """It is a machine of AWS, where fast ports are called EFA."""


def own_links(system: Path = SYSTEM) -> NodeLinks:
    """Describe the links of this machine; a container sees those that it was given."""
    return NodeLinks(fabric_gbits(system), ethernet_gbits(system), is_on_aws(system))


def slowest(links: Iterable[NodeLinks]) -> NodeLinks:
    """Give what all nodes have at least."""
    links = list(links) or [NodeLinks()]
    return NodeLinks(
        min(each.fabric_gbits for each in links),
        min(each.ethernet_gbits for each in links),
        any(each.is_aws for each in links),
    )


def fabric_gbits(system: Path) -> float:
    """Sum the line rates of the ports of the fabric.

    The kernel writes them as "400 Gb/sec (4X NDR)".
    """
    rates = (system / "infiniband").glob("*/ports/*/rate")
    return sum(line_rate(path.read_text()) for path in rates)


def line_rate(text: str) -> float:
    """Read a line rate as the kernel writes it; 0 for anything else."""
    first, _, unit = text.strip().partition(" ")
    return float(first) if unit.startswith("Gb/sec") else 0.0


def ethernet_gbits(system: Path) -> float:
    """Give the speed of the fastest card, or of a bond of several.

    Others are left out: a container's own end of a bridge always tells 10 Gbit/s.
    """
    cards = [
        folder
        for folder in (system / "net").glob("*")
        if (folder / "device").exists() or (folder / "bonding").exists()
    ]
    return max((link_speed(card / "speed") for card in cards), default=0.0)


def link_speed(path: Path) -> float:
    """Read a card's speed, which the kernel writes in Mbit/s; 0 where it knows none."""
    try:
        megabits = int(path.read_text())
    except (OSError, ValueError):  # EINVAL while the link is down
        return 0.0
    return max(0, megabits) / 1000


def is_on_aws(system: Path) -> bool:
    """Say whether this is a machine of AWS, by the maker that its firmware names."""
    try:
        return (system / "dmi" / "id" / "sys_vendor").read_text().strip() == AWS_VENDOR
    except OSError:
        return False
