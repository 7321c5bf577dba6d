"""What a driver says while its workers find no room."""

from pathlib import Path

import pytest
import ray
from ray.util import placement_group, remove_placement_group

from nanoray.cluster.connection import Resources
from nanoray.cluster.group import on_this_node
from nanoray.cluster.monitor import Beat, Start, start_monitor
from nanoray.cluster.pending import LOOK_SECONDS, Pending
from tests.driver import connected
from tests.running import Cluster


@pytest.mark.cluster
def test_workers_that_find_no_room_are_told_of(ray_cluster: Cluster, tmp_path: Path) -> None:
    said: list[str] = []
    with connected(ray_cluster):
        monitor = start_monitor(str(tmp_path), "1", on_this_node())
        pending = Pending(monitor, Resources((2, 2), False, 5.0, 1, 1), said.append)

        def look(times: int) -> None:
            for _ in range(times):
                pending.looked -= LOOK_SECONDS
                pending.check()

        look(2)  # nobody is asked for
        other = placement_group([{"CPU": 9.0}])
        look(2)  # somebody else waits
        assert said == []

        own = placement_group([{"CPU": 5.0}, {"CPU": 5.0}])
        look(1)
        assert said == []
        look(3)
        assert said == [
            "waiting for machines since 0 s: 2 worker(s) of 5 CPUs each; the cluster has 8 CPUs, "
            "free are 8 CPUs"
        ]

        ray.get(monitor.begin_group.remote(Start(1, 0, 8)))
        ray.get(monitor.beat.remote(Beat(1, 0, 1, 0.0, "node", "starting", 0.0, is_training=False)))
        look(2)
        assert len(said) == 1
        for group in (other, own):
            remove_placement_group(group)


@pytest.mark.cluster
def test_a_group_of_changing_size_waits_although_nothing_is_asked_for(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    said: list[str] = []
    with connected(ray_cluster):
        monitor = start_monitor(str(tmp_path), "2", on_this_node())
        pending = Pending(monitor, Resources((2, 4), False, 2.0, 1, 1), said.append)
        begun = placement_group([{"CPU": 2.0}] * 2)
        ray.get(begun.ready())
        for _ in range(3):
            pending.looked -= LOOK_SECONDS
            pending.check()
        assert said == []

        remove_placement_group(begun)
        for _ in range(2):
            pending.looked -= LOOK_SECONDS
            pending.check()

    assert said[0].startswith("waiting for machines since 0 s: 2 to 4 worker(s) of 2 CPUs each")
