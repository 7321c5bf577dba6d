"""The doctor before a large stage: brings up the machines that are still missing, and looks."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import ray
from ray.util import placement_group, remove_placement_group

from nanoray.cluster import connection
from nanoray.cluster.connection import Resources
from nanoray.cluster.turns import TELL_SECONDS
from nanoray.config import InputError, RunConfig
from nanoray.ops.doctor import diagnose, look
from nanoray.ops.doctor_findings import Diagnosis, Status
from nanoray.ops.doctor_run import open_run
from nanoray.progress import duration
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.storage import StageFolder

logger = logging.getLogger(__name__)

LARGE_RUN_GPUS = 8
"""A run on so many is worth a look of a minute before it starts."""
FREE_SECONDS = 10.0
"""In which Ray has given back what was reserved."""


def examine(config: PretrainConfig) -> None:
    """Look at the cluster that this process is connected to, if the pretraining to come is large.

    Raises:
        InputError: something would stop the run, and it has not begun.
    """
    if config.doctor == "never":
        return
    run = open_run(config, connection.absolute_address(config.storage or "runs"))
    resources = connection.choose_resources(run.config)
    folder = run.folder
    examine_for(config, folder, resources, lambda quick: diagnose(config, quick=quick))


def examine_later(config: RunConfig, folder: StageFolder, resources: Resources) -> None:
    """Look at the cluster before a stage that follows on pretraining.

    Raises:
        InputError: something would stop the stage, and it has not begun.
    """
    storage = folder.run.storage
    examine_for(config, folder, resources, lambda quick: look(storage, None, quick=quick))


def examine_for(
    config: RunConfig,
    folder: StageFolder,
    resources: Resources,
    diagnosed: Callable[[bool], Diagnosis],
) -> None:
    """Look if the stage is large, and is not done.

    One that has begun already is told what is wrong and goes on: nobody may be there to mend it.

    Args:
        config: as the user gave it.
        folder: of the stage.
        resources: what it takes.
        diagnosed: looks, quickly or with what has to be measured.

    Raises:
        InputError: something would stop it, and it has not begun.
    """
    is_large = resources.use_gpu and resources.num_workers[1] >= LARGE_RUN_GPUS
    is_done = folder.run.is_done(folder.name) and not config.fresh
    if is_done or config.doctor == "never" or (config.doctor == "auto" and not is_large):
        return
    if (are_up := are_there(resources)) or are_idle(resources):
        if not are_up:
            bring_up(resources)
        diagnosis = diagnosed(False)
    else:
        logger.info("others hold machines that this stage waits for: the doctor measures nothing")
        diagnosis = diagnosed(True)
    for finding in (*diagnosis.having(Status.WARNING), *diagnosis.having(Status.FAILED)):
        told = f"{finding.check}: {finding.found} {finding.remedy}".rstrip()
        logger.warning("doctor: %s: %s", finding.status.value, told)
    logger.info("doctor: %s", diagnosis.verdict)
    has_begun = folder.read_config() is not None and not config.fresh
    if diagnosis.has_failed and not has_begun:
        first = diagnosis.having(Status.FAILED)[0]
        raise InputError(
            f"The doctor found what would stop this run: {first.check}: {first.found} "
            f"{first.remedy} Mend it, or give --doctor never."
        )


def are_there(resources: Resources) -> bool:
    """Say whether the nodes that are up have room for the fewest workers of a stage."""
    there = ray.cluster_resources()
    least = resources.num_workers[0]
    return all(there.get(name, 0.0) >= least * n for name, n in resources.each().items())


def are_idle(resources: Resources) -> bool:
    """Say whether nobody uses what the workers of a stage will use."""
    there, free = ray.cluster_resources(), ray.available_resources()
    name = "GPU" if resources.use_gpu else "CPU"
    return free.get(name, 0.0) >= there.get(name, 0.0)


def bring_up(resources: Resources) -> None:
    """Have the autoscaler start the nodes for the fewest workers of a stage, and wait for them.

    They stay for as long as its idle timeout, which is longer than the doctor takes.
    """
    began, told = time.monotonic(), 0.0
    with reserved(resources) as is_ready:
        while not is_ready():
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                waited = duration(told - began)
                logger.info("waiting for machines since %s, for the doctor to look at", waited)
    deadline = time.monotonic() + FREE_SECONDS
    while not are_idle(resources) and time.monotonic() < deadline:
        time.sleep(0.2)


@contextlib.contextmanager
def reserved(resources: Resources) -> Iterator[Callable[[], bool]]:
    """Reserve the fewest workers of a stage at Ray; gives what waits a moment for them."""
    group = placement_group([resources.each()] * resources.num_workers[0], strategy="PACK")
    try:
        yield lambda: group.wait(timeout_seconds=1)
    finally:
        remove_placement_group(group)
