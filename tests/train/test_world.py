import tempfile
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist

from nanoray.train.world import (
    LocalWorld,
    ProcessGroupEndedError,
    World,
    all_gather,
    all_reduce_sum,
    is_distributed,
    reduce_scatter_sum,
    train_with_others,
    wait_for_all,
)
from tests.train.ranks import GroupWorld

Values = npt.NDArray[np.float64]


@pytest.fixture(params=["without a process group", "with one of one rank"])
def alone(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Say whether the process group of this single process exists."""
    if request.param == "without a process group":
        yield False
        return
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/a", rank=0, world_size=1)
        yield True
        dist.destroy_process_group()


def values_of(rank: int, world_size: int) -> torch.Tensor:
    """Make (2 * world_size, 3) whole numbers, of which any sum is exact."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-99, 99, (2 * world_size, 3), generator=generator).double()


def use_all_collectives(world: World) -> tuple[Values, Values, Values]:
    """Sum, sum and keep a part, and gather in place; gives what this rank then has."""
    mine = values_of(world.rank, world.world_size)
    part = torch.empty(2, 3, dtype=torch.float64)
    reduce_scatter_sum(part, mine).wait()
    gathered = torch.zeros_like(mine)
    here = gathered[2 * world.rank : 2 * world.rank + 2]
    here.copy_(mine[:2])
    all_gather(gathered, here).wait()
    return all_reduce_sum(mine).numpy(), part.numpy(), gathered.numpy()


def test_a_single_process_sums_and_gathers_its_own(alone):
    mine = values_of(0, 1).numpy()

    results = use_all_collectives(LocalWorld())

    assert is_distributed() == alone
    for result in results:
        assert np.array_equal(result, mine)


def test_a_part_that_lies_elsewhere_is_gathered_too(alone):
    gathered, part = torch.zeros(2, 3), torch.rand(2, 3)

    all_gather(gathered, part).wait()

    assert torch.equal(gathered, part)


def test_the_sum_is_made_in_place(alone):
    values = torch.tensor([1.0, 2.0])

    total = all_reduce_sum(values)

    assert total is values


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_sum_and_gather_what_all_of_them_have(ranks, world_size):
    given = [values_of(rank, world_size).numpy() for rank in range(world_size)]

    results = ranks.run(use_all_collectives, world_size)

    total = np.sum(given, axis=0)
    firsts = np.concatenate([values[:2] for values in given])
    for rank, (summed, part, gathered) in enumerate(results):
        assert np.array_equal(summed, total)
        assert np.array_equal(part, total[2 * rank : 2 * rank + 2])
        assert np.array_equal(gathered, firsts)


def test_a_local_world_is_one_process_of_which_nobody_wants_anything():
    world = LocalWorld("cpu")

    assert (world.rank, world.world_size, world.device.type) == (0, 1, "cpu")
    assert not world.wish()


def go_on_alone(world: World) -> str:
    """End the group as Ray Train does when another rank has failed, and go on."""
    train_with_others(world.world_size > 1)
    try:
        dist.destroy_process_group()
        all_reduce_sum(torch.ones(1))
    except ProcessGroupEndedError as error:
        return str(error)
    finally:
        train_with_others(False)
        with tempfile.TemporaryDirectory() as folder:  # for whoever ends the group of this process
            dist.init_process_group("gloo", init_method=f"file://{folder}/a", rank=0, world_size=1)
    return "went on"


def test_a_rank_of_several_does_not_go_on_when_its_group_was_ended(ranks):
    assert ranks.run(go_on_alone, 2) == ["the process group has been ended"] * 2
    assert ranks.run(go_on_alone, 1) == ["went on"]


class CountingWorld(GroupWorld):
    """Counts its signs of life."""

    beats = 0

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        self.beats += 1


def come_late(world: GroupWorld) -> int:
    """Wait for a rank that comes half a second later than the others."""
    counting = CountingWorld(world.rank, world.world_size)
    if world.rank == 1:
        time.sleep(0.5)
    wait_for_all(counting, "waiting")
    return counting.beats


def test_a_rank_that_waits_for_others_gives_signs_of_life(ranks):
    first, _, third = ranks.run(come_late, 3)

    assert first > 3
    assert third > 3
