from collections.abc import Iterator

import pytest
import ray

from nanoray.cluster.reservations import Reservations, current, find_coordinator
from nanoray.storage import RunFolder
from tests.driver import connected
from tests.running import Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


def reserve(name: str) -> None:
    """Reserve a CPU for three minutes, as Ray Train does for a group."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as ours

    coordinator = ours.get_or_create_autoscaling_coordinator()
    wanted = {"requester_id": name, "resources": [{"CPU": 1}], "expire_after_s": 180}
    ray.get(coordinator.request_resources.remote(**wanted))


def test_the_next_start_gives_back_what_a_killed_one_has_reserved(tmp_path) -> None:
    folder = RunFolder(str(tmp_path), "r")
    reserve("of another job")
    killed = Reservations(folder)
    killed.release_old()
    reserve("train-of-the-killed-one")
    reserve("train-of-a-run-that-started-meanwhile")
    killed.record("train-of-the-killed-one")

    Reservations(folder).release_old()

    left = current(find_coordinator())
    assert "train-of-the-killed-one" not in left
    assert "train-of-a-run-that-started-meanwhile" in left
    assert killed.of_training() == "train-of-the-killed-one"
    assert "of another job" in left


def test_a_first_start_has_nothing_to_give_back(tmp_path) -> None:
    reserve("of another job")

    Reservations(RunFolder(str(tmp_path), "new")).release_old()

    assert "of another job" in current(find_coordinator())
