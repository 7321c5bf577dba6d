"""What an hour of a GPU costs, where nobody says: a table to be overridden, not a quotation."""

DOLLARS_PER_GPU_HOUR = (
    ("b200", 5.6),  # packet.ai's machines, June 2026; AWS asks 14
    ("h200", 4.0),  # specialized clouds in May 2026: 3.5 to 4.5 (mercatus-ai.com)
    ("h100", 3.0),  # nanochat's runs: $24 for eight; specialized clouds 2.5 to 3.5
    ("a100", 1.5),  # large clouds 1.5 to 3, specialized ones 1.1 to 1.5
)
"""By a part of the device's name, first match first."""
OTHERS = 3.0
"""Of other GPUs, and of a training worker on CPUs."""


def dollars_per_hour(given: float | None, device: str) -> float:
    """Give the price that a user gave, or that of a kind of GPU.

    Args:
        given: dollars per hour of a GPU, or on CPUs of a worker.
        device: name of the GPU, or "cpu".
    """
    if given is not None:
        return given
    known = (price for part, price in DOLLARS_PER_GPU_HOUR if part in device.lower())
    return next(known, OTHERS)
