from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray

from nanoray.cluster.connection import Resources
from nanoray.cluster.group import on_this_node
from nanoray.cluster.growth import LOOK_SECONDS, Growth, count_workers
from nanoray.cluster.monitor import Beat, Start, start_monitor
from nanoray.cluster.reservations import Reservations
from nanoray.cluster.turns import Turn
from nanoray.data.feed import Actor
from nanoray.storage import RunFolder
from nanoray.train.world import Wish
from tests.cluster.test_reservations import reserve
from tests.driver import connected
from tests.running import Cluster

UP_TO_4 = Resources((1, 4), False, 0.5, 1, 1)


@pytest.mark.parametrize(
    ("reserved", "num_workers"),
    [
        ({}, 0),
        ({"a": {"CPU": 2.0}}, 4),
        ({"a": {"CPU": 1.25}, "b": {"CPU": 0.25}}, 2),
        ({"a": {"CPU": 0.625 + 0.625}, "b": {"GPU": 1.0}}, 2),
    ],
)
def test_workers_are_counted_node_by_node(reserved, num_workers):
    assert count_workers(reserved, UP_TO_4.each()) == num_workers


def test_a_worker_with_a_gpu_needs_both():
    each = replace(UP_TO_4, use_gpu=True).each()

    assert count_workers({"a": {"CPU": 8.0, "GPU": 2.0}, "b": {"CPU": 8.0}}, each) == 2


@pytest.fixture
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@pytest.mark.cluster
def test_a_group_smaller_than_its_room_is_asked_once(ray_connection, tmp_path):
    folder = RunFolder(str(tmp_path), "r")
    monitor = start_monitor(str(folder), "1", on_this_node())
    reservations = Reservations(folder)
    reservations.release_old()
    reserve("train-of-this-run")  # one CPU: room for two workers
    reservations.record("train-of-this-run")
    turn = Turn(str(folder), UP_TO_4)
    growth = Growth(monitor, reservations, UP_TO_4, turn)
    ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
    growth.check()  # too early
    assert not ray.get(monitor.beat.remote(beat_of(0)))

    told = []
    for _ in range(3):
        growth.looked -= LOOK_SECONDS
        growth.check()
        told.append(ray.get(monitor.beat.remote(beat_of(0))))
        begin_anew(monitor)
        ray.get(monitor.beat.remote(beat_of(0)))
    ray.get(monitor.beat.remote(beat_of(1)))
    growth.looked -= LOOK_SECONDS
    growth.check()

    assert told == [Wish.GROW, Wish.NONE, Wish.NONE], (
        "a group that came back as small is left alone"
    )
    assert not ray.get(monitor.beat.remote(beat_of(0))), "two workers are all there is room for"

    begin_anew(monitor)  # one is lost
    ray.get(monitor.beat.remote(beat_of(0)))
    growth.looked -= LOOK_SECONDS
    growth.check()
    assert ray.get(monitor.beat.remote(beat_of(0))) is Wish.GROW, "what came after is used again"
    turn.leave()


def beat_of(rank: int) -> Beat:
    return Beat(1, rank, 100 + rank, 0.0, "n", "step 3", 0.0, is_training=True)


def begin_anew(monitor: Actor) -> None:
    ray.get(monitor.end_group.remote())
    ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
