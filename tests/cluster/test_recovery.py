from collections.abc import Callable

import pytest
import torch

from nanoray.cluster.recovery import (
    BUG_TRIES,
    Cause,
    Failure,
    RetryBudget,
    describe_failure,
    find_cause,
    of_group,
)
from nanoray.config import DataError, InputError, RunReplacedError, StorageError
from nanoray.train.rollback import DivergedError
from nanoray.train.world import AskedToStopError, ProcessGroupEndedError, RoomForMoreError


def ray_errors() -> dict[str, tuple[Exception, Cause]]:
    """Make errors as Ray 2.60 and torch raise them."""
    import ray.exceptions as ray_says
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    died = ray_says.RayActorError(error_msg="The actor died unexpectedly.")
    preempted = ray_says.RayActorError(preempted=True)
    low = ray_says.RayActorError(error_msg="killed: the node was running low on memory")
    return {
        "dead actor": (died, Cause.LOST),
        "dead actor in a health check": (WorkerHealthCheckFailedError("no", died), Cause.LOST),
        "preempted": (preempted, Cause.PREEMPTION),
        "preempted in a health check": (
            WorkerHealthCheckFailedError("no", preempted),
            Cause.PREEMPTION,
        ),
        "killed by the memory monitor": (low, Cause.MEMORY),
        "task out of memory": (ray_says.OutOfMemoryError("too much"), Cause.MEMORY),
    }


@pytest.mark.parametrize("name", list(ray_errors()))
def test_what_ray_says_of_a_worker_is_understood(name: str) -> None:
    error, cause = ray_errors()[name]

    assert find_cause(error) is cause


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Cause.MEMORY),
        (MemoryError(), Cause.MEMORY),
        (RuntimeError("CUDA error: out of memory"), Cause.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublas"), Cause.MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), Cause.MEMORY),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), Cause.LOST),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), Cause.LOST),
        (ConnectionResetError("reset"), Cause.LOST),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), Cause.LOST),
        (RuntimeError("CUDA error: unspecified launch failure"), Cause.LOST),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), Cause.BUG),
        (torch.AcceleratorError("CUDA error: out of memory"), Cause.MEMORY),
        (ProcessGroupEndedError("the process group has been ended"), Cause.LOST),
        (RoomForMoreError("step 8 is saved"), Cause.GROWTH),
        (AskedToStopError("step 8 is saved"), Cause.STOP),
        (StorageError("runs could not be written for 1800 s"), Cause.OUTAGE),
        (OSError(28, "No space left on device"), Cause.STORAGE),
        (OSError(12, "Cannot allocate memory"), Cause.MEMORY),
        (InputError("--depth 0 is too small"), Cause.INPUT),
        (RunReplacedError("/s/r", 1, 2, "process 7 on b"), Cause.REPLACED),
        (DivergedError(7, 5, "the loss is nan"), Cause.DIVERGENCE),
        (ValueError("a typo in the loop"), Cause.BUG),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Cause.BUG),
    ],
)
def test_each_error_of_a_worker_has_one_cause(error: Exception, cause: Cause) -> None:
    assert find_cause(error) is cause


def raised_by(work: Callable[[], object]) -> Failure:
    try:
        work()
    except Exception as error:
        return describe_failure(error, rank=3)
    raise AssertionError("nothing was raised")


def test_the_line_of_the_project_comes_first_and_the_traceback_after() -> None:
    failure = raised_by(lambda: int("seven"))

    assert failure.summary.startswith("ValueError: invalid literal for int()")
    assert "test_recovery.py" in failure.summary
    assert 'int("seven")' in failure.summary
    assert failure.details.startswith("Traceback (most recent call last)")
    assert failure.rank == 3


def test_ranks_that_lost_their_peer_do_not_hide_why_it_ended() -> None:
    lost = Failure(Cause.LOST, 0, "connection closed by peer")
    bug = Failure(Cause.BUG, 2, "ValueError: no")

    assert of_group([lost, bug, lost]) is bug
    preempted = Failure(Cause.PREEMPTION, 1, "")
    assert of_group([lost, preempted]) is preempted, "the others failed because it went"


def lost_at(budget: RetryBudget, step: int) -> bool:
    return budget.decide(Failure(Cause.LOST, 0, "gone"), step).again


def test_machines_may_fail_for_ever_while_the_run_gets_on() -> None:
    budget = RetryBudget(max_restarts=3, device_batch_size=8)

    assert all(lost_at(budget, step) for step in range(0, 1000, 10))


def test_a_run_that_does_not_get_on_stops_after_so_many_restarts() -> None:
    budget = RetryBudget(max_restarts=3, device_batch_size=8)

    assert [lost_at(budget, 20) for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("cause", [Cause.PREEMPTION, Cause.DIVERGENCE])
def test_preemptions_and_rollbacks_cost_nothing_of_the_budget(cause: Cause) -> None:
    budget = RetryBudget(max_restarts=1, device_batch_size=8)
    notice = Failure(cause, 0, "the node is taken away")

    assert all(budget.decide(notice, 0).again for _ in range(50))
    assert lost_at(budget, 0)


def test_the_same_error_in_the_code_is_tried_twice_even_if_the_run_gets_on() -> None:
    budget = RetryBudget(max_restarts=10, device_batch_size=8)
    bug, other = Failure(Cause.BUG, 1, "ValueError: no"), Failure(Cause.BUG, 1, "KeyError: 'x'")

    first, second = budget.decide(bug, 0), budget.decide(other, 5)
    last = budget.decide(bug, 10)

    assert BUG_TRIES == 2
    assert (first.again, second.again, last.again) == (True, True, False)
    assert last.line == (
        "error in the code on rank 1 (ValueError: no): 2 of 2; the run stops, because it would "
        "come back"
    )


def test_out_of_memory_halves_the_device_batch_until_it_is_one_row() -> None:
    budget = RetryBudget(max_restarts=10, device_batch_size=4)
    failure = Failure(Cause.MEMORY, 0, "CUDA out of memory")

    decisions = [budget.decide(failure, 40) for _ in range(3)]

    assert [d.device_batch_size for d in decisions] == [2, 1, 1]
    assert [d.again for d in decisions] == [True, True, False]
    assert decisions[0].line.endswith(
        "1 of 2; the group starts again from step 40, the device batch goes from 4 to 2 rows, the "
        "global batch stays"
    )


@pytest.mark.parametrize("cause", [Cause.INPUT, Cause.OUTAGE, Cause.STOP, Cause.REPLACED])
def test_what_another_start_cannot_cure_is_never_tried_again(cause: Cause) -> None:
    budget = RetryBudget(max_restarts=10, device_batch_size=4)

    assert not budget.decide(Failure(cause, 0, "--depth 0"), 0).again


def test_an_error_that_comes_back_with_another_text_is_the_same_error() -> None:
    budget = RetryBudget(max_restarts=10, device_batch_size=8)

    def fail(number: int) -> Failure:
        def work() -> None:
            raise ValueError(f"bad batch {object()} of attempt {number}")

        return raised_by(work)

    assert [budget.decide(fail(n), 5 * n).again for n in range(2)] == [True, False]


def test_errors_of_all_kinds_in_a_row_end_a_run_too() -> None:
    budget = RetryBudget(max_restarts=3, device_batch_size=8)
    bugs = [Failure(Cause.BUG, 0, f"ValueError: {number}") for number in range(5)]

    assert [budget.decide(bug, 7).again for bug in bugs] == [True, True, True, False, False]


def test_what_a_reader_found_wrong_is_told_as_it_was_raised_there() -> None:
    from ray.exceptions import RayTaskError

    cause = DataError("/data/a.parquet cannot be read at rows 0 to 5. Fetch it again.")
    inner = RayTaskError("read", "Traceback ...", cause)
    outer = RayTaskError("next", "Traceback ...", inner)

    failure = describe_failure(outer, 1)

    assert failure.cause is Cause.INPUT
    assert failure.summary == f"DataError: {cause}"
