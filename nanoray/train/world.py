"""Where this process stands among those that train together."""

import enum
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

POLL_SECONDS = 0.02


class RoomForMoreError(RuntimeError):
    """Ends a group that has saved, so that a larger one goes on."""


class AskedToStopError(RuntimeError):
    """Ends a group that has saved, because somebody wants the run to stop."""


class Wish(enum.StrEnum):
    """What a group is asked to do once its next step is saved."""

    NONE = ""
    GROW = "grow"
    """End, so that a larger one goes on."""
    STOP = "stop"
    SAVE = "save"
    """Go on; asked for once."""


class World(Protocol):
    """What the training loop may ask of its surroundings."""

    rank: int
    world_size: int
    device: torch.device

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Tell whoever watches how far the run is; called by rank 0 after each step."""

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        """Tell whoever watches that this rank lives; called often, by every rank.

        With its first step a rank has compiled all it needs: from then on no silence is long.
        """

    def wish(self) -> Wish:
        """Say on rank 0 what the group is asked to do; nothing elsewhere."""


class LocalWorld:
    """One process on one device, without a cluster."""

    rank = 0
    world_size = 1

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def report(self, step: int, values: dict[str, Any]) -> None:
        """Nobody watches; metrics.jsonl has everything."""

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        """Nobody watches: a person sees a process that hangs."""

    def wish(self) -> Wish:
        """Say that nobody asks for anything."""
        return Wish.NONE


class Pending:
    """A collective under way; `wait` returns when its result may be read."""

    def __init__(self, work: Any) -> None:  # Any: torch's Work has no public type
        self._work = work

    def wait(self) -> None:
        """Wait for the collective; on a GPU, make the current stream wait."""
        if self._work is not None:
            self._work.wait()


class ProcessGroupEndedError(RuntimeError):
    """Others have ended the process group in which this rank was training."""


_has_others = False


def train_with_others(has_others: bool) -> None:
    """Say whether this process is one of several ranks: then it never goes on without its group.

    Ray Train ends the group under a worker that still trains, when another one has failed. Without
    the group, sums over all ranks would silently be this rank's own.
    """
    global _has_others
    _has_others = has_others


def is_distributed() -> bool:
    """Say whether torch's process group is there, be it of one rank.

    Raises:
        ProcessGroupEndedError: it is not, and this process is one of several ranks.
    """
    there = dist.is_available() and dist.is_initialized()
    if _has_others and not there:
        raise ProcessGroupEndedError("the process group has been ended")
    return there


def _either(new: str, old: str) -> Callable[..., Any]:
    """Give a collective by its name since torch 2.13, or by the one before."""
    return getattr(dist, new, None) or getattr(dist, old)


def wait_for_all(world: World, doing: str) -> None:
    """Wait until every rank has come here, and give signs of life meanwhile."""
    if not is_distributed():
        return
    arrived = torch.ones((), device=world.device)
    work: Any = dist.all_reduce(arrived, async_op=True)  # Any: torch's Work has no public type
    while not work.is_completed():
        world.beat(doing)
        time.sleep(POLL_SECONDS)
    work.wait()


def reduce_scatter_sum(total: Tensor, parts: Tensor) -> Pending:
    """Sum `parts`, (world_size * n, ...), over the ranks; rank r gets the r-th n rows."""
    if not is_distributed():
        total.copy_(parts)
        return Pending(None)
    return Pending(
        _either("reduce_scatter_single", "reduce_scatter_tensor")(total, parts, async_op=True)
    )


def all_gather(gathered: Tensor, part: Tensor) -> Pending:
    """Fill `gathered`, (world_size * n, ...), with every rank's `part`, which may lie inside it."""
    if not is_distributed():
        gathered.copy_(part)
        return Pending(None)
    return Pending(
        _either("all_gather_single", "all_gather_into_tensor")(gathered, part, async_op=True)
    )


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if is_distributed():
        dist.all_reduce(values)
    return values
