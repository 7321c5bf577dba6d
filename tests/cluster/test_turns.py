"""Runs that share a cluster of eight CPUs: each takes workers of three, and one for its data."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import ray

from nanoray.cluster.connection import Resources
from nanoray.cluster.turns import LAPSE_SECONDS, Turn, amount
from tests.driver import connected
from tests.running import Cluster


@pytest.fixture
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        assert ray.cluster_resources()["CPU"] == 8
        yield


def turn(run: str, workers: int = 1) -> Turn:
    """Take a ticket for a run."""
    return Turn(run, Resources((workers, workers), False, 3.0, 1, 1))


def never(seconds: float) -> None:
    """Stand in for sleep where nobody waits."""
    raise AssertionError("waited")


@pytest.mark.cluster
def test_a_third_run_waits_until_one_of_two_leaves(ray_connection: None) -> None:
    said: list[str] = []
    first, second, third = turn("/s/a"), turn("/s/b"), turn("/s/c")
    first.wait(said.append, never)
    second.wait(said.append, never)
    assert said == []
    sleeps = iter([lambda: None, lambda: None, first.leave])

    third.wait(said.append, lambda seconds: next(sleeps)())

    assert said == [
        "waiting for room: this run takes 4 CPUs, and of the cluster's 8 CPUs these were here "
        "before: /s/a (4 CPUs), /s/b (4 CPUs)",
        "there is room now, after 0 s",
    ]
    for each in (second, third):
        each.leave()


@pytest.mark.cluster
def test_a_large_run_that_waits_is_not_overtaken_by_a_small_one(ray_connection: None) -> None:
    said: list[str] = []
    running, large, small = turn("/s/a", 1), turn("/s/large", 2), turn("/s/small", 1)
    running.wait(said.append, never)
    order: list[str] = []

    def until_large_is_through(seconds: float) -> None:
        if not order:
            running.leave()
            large.wait(said.append, never)
            order.append("large")
            large.leave()

    small.wait(said.append, until_large_is_through)

    assert order == ["large"]
    assert said[0].endswith("/s/a (4 CPUs), /s/large (7 CPUs)")
    small.leave()


@pytest.mark.cluster
def test_a_run_larger_than_what_is_left_of_the_cluster_begins_when_it_is_alone(
    ray_connection: None,
) -> None:
    alone = turn("/s/a", 9)

    alone.wait(lambda line: None, never)

    alone.leave()


@pytest.mark.slow
@pytest.mark.cluster
def test_nobody_waits_for_a_run_that_was_killed(ray_connection: None) -> None:
    killed, living, new = turn("/s/killed"), turn("/s/living"), turn("/s/new")
    looks = [0]

    def later(seconds: float) -> None:
        looks[0] += 1
        assert looks[0] < 5
        living.beaten = -math.inf  # its own clock says that it is time to tell
        living.check()
        new.seen = {n: (beat, since - LAPSE_SECONDS) for n, (beat, since) in new.seen.items()}

    new.wait(lambda line: None, later)

    assert looks[0] == 1
    killed.beaten = -math.inf
    killed.check()  # it had only been silent, and is back: the next one waits for it again
    next_one = turn("/s/next")
    said: list[str] = []
    next_one.wait(said.append, lambda seconds: killed.leave())
    assert "/s/killed (4 CPUs)" in said[0]
    for each in (living, new, next_one):
        each.leave()


@pytest.mark.cluster
def test_an_earlier_start_of_the_same_run_is_not_waited_for(ray_connection: None) -> None:
    turn("/s/a", 3)

    again = turn("/s/a", 3)
    again.wait(lambda line: None, never)

    again.leave()


@pytest.mark.cluster
def test_tickets_taken_at_the_same_time_differ_and_are_never_given_again(
    ray_connection: None,
) -> None:
    before = turn("/s/before")
    before.leave()
    with ThreadPoolExecutor(8) as pool:
        turns = list(pool.map(lambda i: turn(f"/s/{i}"), range(8)))
    numbers = {each.number for each in turns}

    assert len(numbers) == 8
    assert min(numbers) > before.number
    for each in turns:
        each.leave()
    after = turn("/s/after")
    after.leave()
    assert after.number == max(numbers) + 1


def test_amounts_are_told_as_people_do() -> None:
    assert amount(65.0, 8.0) == "8 GPUs and 65 CPUs"
    assert amount(8.0, 1.0) == "1 GPU and 8 CPUs"
    assert amount(1.5, 0.0) == "1.5 CPUs"


@pytest.mark.cluster
def test_a_run_of_changing_size_leaves_the_runs_before_it_what_they_take(
    ray_connection: None,
) -> None:
    elastic = Turn("/s/elastic", Resources((1, 6), False, 1.0, 1, 1))
    alone = elastic.most_workers()
    elastic.leave()
    first = turn("/s/a")  # three CPUs for its worker, and one for its stream
    later = Turn("/s/later", Resources((1, 6), False, 1.0, 1, 1))
    beside = later.most_workers()
    first.leave()

    assert (alone, beside, later.most_workers()) == (6, 3, 6)
    later.leave()


@pytest.mark.cluster
def test_a_run_is_kept_while_its_driver_waits_for_something(ray_connection: None) -> None:
    kept = turn("/s/kept")
    kept.beaten = -math.inf

    with kept.kept():
        deadline = time.monotonic() + 60
        while not kept.ticket.beat:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    kept.leave()
