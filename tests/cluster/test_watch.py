import pytest
import ray

from nanoray.cluster.watch import Attempts


def fails() -> None:
    """Fail as a guard may."""
    raise OSError("no route to the storage")


def test_what_fails_is_told_once_and_keeps_nothing_from_going_on() -> None:
    said: list[str] = []
    done: list[str] = []
    attempts = Attempts(said.append)

    for _ in range(3):
        attempts.make(fails)
        attempts.make(done.append, "the next guard")

    assert done == ["the next guard"] * 3
    assert said == [
        "warning: the watch over the run goes on after OSError: no route to the storage"
    ]


@pytest.mark.parametrize(
    "error", [ray.exceptions.GetTimeoutError("busy"), ray.exceptions.RpcError("gone")]
)
def test_errors_of_a_busy_cluster_are_passed_over(error: Exception) -> None:
    said: list[str] = []

    def look() -> None:
        raise error

    Attempts(said.append).make(look)

    assert said == []
