"""What a killed job still holds of the cluster, given back before the next start of its run.

Ray Data and Ray Train reserve CPUs with a detached actor that drops a reservation only after three
minutes without news. A job that was killed cannot take its own back, and on a cluster without CPUs
to spare the same command, given again, would wait for them (seen: 188 s to the first checkpoint).
So the names of a run's reservations are kept with it. One that is not ours by mistake does no harm
when it is dropped: whoever lives renews its own every twenty seconds.
"""

import logging
from typing import Any

import ray

from nanoray.storage import RunFolder, read_json, write_json

logger = logging.getLogger(__name__)

COORDINATOR = "AutoscalingCoordinator"
"""Name and namespace of Ray 2.60's actor."""
TRAIN_PREFIX = "train-"
CALL_SECONDS = 10


class Reservations:
    """The reservations of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.fs, self.path = folder.fs, folder.path("reservations.json")
        self.before: set[str] = set()
        self.names: list[str] | None = None
        """What this start has reserved."""

    def release_old(self) -> None:
        """Give back what an earlier start of this run has left; to be called before a start."""
        old = (read_json(self.fs, self.path) or {}).get("names", [])
        coordinator = find_coordinator()
        if coordinator is None:
            return
        for name in old:
            ray.get(coordinator.cancel_request.remote(name), timeout=CALL_SECONDS)
        self.before = set(current(coordinator))

    def record(self, training: str) -> None:
        """Keep the names of what has been reserved since `release_old`, once.

        Args:
            training: name of the workers' own; another run may have started at the same time.
        """
        coordinator = find_coordinator()
        new = set() if coordinator is None else set(current(coordinator)) - self.before
        names = sorted(n for n in new if n == training or not n.startswith(TRAIN_PREFIX))
        write_json(self.fs, self.path, {"names": names})
        self.names = names

    def of_training(self) -> str | None:
        """Give the name of the workers' reservation, as far as it is known."""
        names = [name for name in self.names or [] if name.startswith(TRAIN_PREFIX)]
        return names[0] if names else None


def refresh() -> None:
    """Let Ray look at the nodes of the cluster now, instead of within twenty seconds.

    An elastic group is started with as many workers as the nodes hold that Ray has seen then.
    """
    coordinator = find_coordinator()
    if coordinator is None:
        return
    try:
        asked = coordinator.get_reserved_resources.remote("nobody", recompute=True)
        ray.get(asked, timeout=CALL_SECONDS)
    except ray.exceptions.RayError as error:
        logger.warning("Ray may count on nodes that are lost: %s", error)


def find_coordinator() -> Any:  # Any: a handle
    """Give the actor that keeps the reservations, or None on a cluster where nobody asked yet."""
    try:
        return ray.get_actor(COORDINATOR, namespace=COORDINATOR)
    except ValueError:
        return None


def current(coordinator: Any) -> list[str]:  # Any: a handle
    """List all reservations; empty, with a warning, where Ray keeps them in another way."""
    try:
        names: list[str] = ray.get(
            coordinator.__ray_call__.remote(lambda actor: list(actor._ongoing_reqs)),
            timeout=CALL_SECONDS,
        )
    except ray.exceptions.RayError as error:
        logger.warning("reservations of killed jobs are not given back: %s", error)
        return []
    return names
