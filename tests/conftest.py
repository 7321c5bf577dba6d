"""One small Ray cluster for all tests that need one: eight logical CPUs, its own processes."""

from collections.abc import Iterator

import pytest

from tests.running import Cluster, start_cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Start the cluster when the first test asks for it, and end it with the session."""
    cluster = start_cluster(num_cpus=8)
    yield cluster
    cluster.stop()
