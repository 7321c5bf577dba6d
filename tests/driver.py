"""The test process itself as a driver of a cluster, for what is tested without a job.

Not in running.py: the conftest imports that one first of all, and ray may only be imported after
nanoray, which says that tokens are used.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from tests.running import Cluster


@contextmanager
def connected(cluster: Cluster, **env: str) -> Iterator[None]:
    """Connect to the cluster; tasks and actors get the variables."""
    ray.init(
        address=cluster.address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": env},
    )
    try:
        yield
    finally:
        ray.shutdown()
