"""The Ray cluster that a job talks to: how it is found, and what it has.

Workers are started on it by `cluster.py`.
"""

import contextlib
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import services, worker
from ray.job_config import JobConfig

from nanoray import logs
from nanoray.cluster.autoscaler import possible_nodes
from nanoray.cluster.head import check_answers, no_answer, token_refused, versions_differ
from nanoray.cluster.loopback import LOOPBACK, answers_only_here, on_loopback
from nanoray.config import InputError, RunConfig, worker_range
from nanoray.data.feed import STREAM_CPUS

LOCAL_OBJECT_STORE_BYTES = 2**30
"""Blocks under way need a few megabytes; Ray would take a third of the memory."""
SMALL_MACHINE = {
    # A run has two dozen small processes. With the defaults, the number of CPUs, Ray warns of each
    # few, and ends those that are idle, which soon have to be started again.
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_num_workers_soft_limit": "24",
}
"""Settings for starting Ray on a machine with few CPUs."""
MESSAGE_CHARS = 200
LEAST_CPUS_PER_WORKER = 0.125
GPU_WORKER_CPUS = 8.0


class NotEnoughResourcesError(InputError):
    """The cluster cannot hold the workers that were asked for."""


def known_address() -> str | None:
    """Give RAY_ADDRESS, or the address of what `ray start` left running here, if anything."""
    return os.environ.get("RAY_ADDRESS") or started_cluster()


def connect(
    address: str | None = None,
    *,
    least_cpus: int = 2,
    settings: Mapping[str, str] = SMALL_MACHINE,
) -> None:
    """Connect to an address, by default to `known_address`, or start a local cluster.

    One that is started here is for this machine: it listens on the loopback only.

    Args:
        address: of the cluster.
        least_cpus: logical ones of a local cluster, whatever the machine has.
        settings: environment variables of a local cluster, where they are not set.

    Raises:
        ClusterError: no cluster answers, or it does not take our token, or has another version of
            Ray or Python.
    """
    if ray.is_initialized():
        return
    shorten_messages()
    # Ray Data tells of each execution; a run says itself what it does.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "job_config": job_config(),
    }  # Any: ray.init's
    address = address or known_address()
    if address is None:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        with on_loopback():
            ray.init(
                address="local",
                num_cpus=max(least_cpus, os.cpu_count() or 1),
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                dashboard_host=LOOPBACK,
                **quiet,
            )
        keep_token_private()
        return
    check_answers(address)
    try:
        with on_loopback() if answers_only_here(address) else contextlib.nullcontext():
            ray.init(address=address, **quiet)
    except ray.exceptions.AuthenticationError as error:
        raise token_refused(address) from error
    except ConnectionError as error:
        # Ray tells of a token that the cluster refused in nothing but this text.
        if "AuthenticationError" in str(error.__cause__):
            raise token_refused(address) from error
        raise no_answer(address) from error
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        raise versions_differ(str(error)) from error


def job_config() -> JobConfig:
    """Let workers log JSON where we do; `ray.init(logging_config=...)` would double our own."""
    config = JobConfig()
    if logs.are_json():
        whole = ray.LoggingConfig(encoding="JSON", additional_log_standard_attrs=["name"])
        config.set_py_logging_config(whole)
    return config


def keep_token_private() -> None:
    """Let nobody else read the token, which Ray writes for everybody to read."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    with contextlib.suppress(OSError):
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def shorten_messages() -> None:
    """Let Ray print only the first line of what it says of lost nodes: pages of state follow it."""
    whole: Any = worker.print_to_stdstream  # Any: not public

    def print_first_lines(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [next(iter(str(text).splitlines()), "")[:MESSAGE_CHARS] for text in data["lines"]]
        whole({**data, "lines": lines}, ignore_prefix)

    if whole.__name__ != print_first_lines.__name__:
        worker.print_to_stdstream = print_first_lines


def started_cluster() -> str | None:
    """Give the address of the cluster that the last `ray start` on this machine left running.

    A cluster that another driver started for itself is left alone: it would end with that driver.
    """
    address: str | None = services.find_bootstrap_address(None)
    return address if address in services.find_gcs_addresses() else None


def launch_folder() -> str:
    """Give the folder against which relative paths are meant.

    A job with an uploaded working folder runs in a temporary copy of it; what it writes there would
    be lost. It writes where `ray start --head` was called, as a job without an upload does.

    Raises:
        InputError: this is such a job, and the head's folder cannot be found.
    """
    here = os.getcwd()
    if "/runtime_resources/working_dir_files/" not in here:
        return here
    for process in psutil.Process().parents():
        if process.name().startswith("raylet"):
            return process.cwd()
    raise InputError(
        f"A job in the temporary folder {here} needs an absolute --storage, or an address."
    )


def absolute_address(address: str) -> str:
    """Make a local path absolute; addresses with a protocol stay."""
    return (
        address if "://" in address else os.path.join(launch_folder(), os.path.expanduser(address))
    )


@dataclass(frozen=True)
class Resources:
    """What the workers of a run are and take."""

    num_workers: tuple[int, int]
    """Least and most."""
    use_gpu: bool
    cpus_per_worker: float
    """Logical, reserved by Ray."""
    threads_per_worker: int
    """Of the CPU kernels; the result of a run on CPUs depends on it in the last bits."""
    num_readers: int
    """Units that are read at a time."""
    gpus_beside: int = 0
    """Used by something else than the workers."""

    def each(self) -> dict[str, float]:
        """Give what Ray reserves for one worker."""
        return {"CPU": self.cpus_per_worker, **({"GPU": 1.0} if self.use_gpu else {})}


def choose_resources(
    config: RunConfig, *, most_workers: int | None = None, beside: int = 0
) -> Resources:
    """Decide how many workers there are and what each one takes, from what the cluster has.

    Args:
        config: what the user gave.
        most_workers: more cannot be used; bounds what is chosen where nothing was asked for.
        beside: GPUs that are needed for something else; they are not chosen.

    Raises:
        NotEnoughResourcesError: more workers than the cluster holds, or no CPU left for Ray Data.
    """
    have = cluster_total()
    use_gpu = have["GPU"] >= 1
    cpus, gpus = have["CPU"], int(have["GPU"])
    chosen = max(1, min(gpus - beside, most_workers or gpus)) if use_gpu else 1
    low, high = worker_range(config.num_workers) or (chosen, chosen)
    if use_gpu and low > gpus:
        raise NotEnoughResourcesError(
            f"--num-workers {config.num_workers} needs {low} GPUs, and the cluster has {gpus}. "
            f"Give --num-workers {gpus}, or add nodes."
        )
    wanted, nodes = config.cpus_per_worker, node_cpus(cpus)
    if wanted is None:
        share = largest_share(nodes, high)
        if low < high and not use_gpu:
            share = elastic_share(nodes, high) or share
        wanted = min(GPU_WORKER_CPUS, share) if use_gpu else share
        wanted = math.floor(wanted * 16) / 16  # sums and quotients are exact, and Ray makes both
    elif wanted > max(nodes):
        raise NotEnoughResourcesError(
            f"--cpus-per-worker {wanted:g} is more than the {max(nodes):g} CPUs of the largest "
            "node, and a worker cannot be split. Give less."
        )
    if wanted < LEAST_CPUS_PER_WORKER or low * wanted + STREAM_CPUS > cpus:
        least = config.cpus_per_worker or LEAST_CPUS_PER_WORKER
        fitting = int((cpus - STREAM_CPUS) / least)
        raise NotEnoughResourcesError(
            f"{high} workers of {max(wanted, least):g} CPUs and Ray Data with {STREAM_CPUS:g} need "
            f"{high * max(wanted, least) + STREAM_CPUS:g} CPUs, and the cluster has {cpus:g}. "
            + (f"Give --num-workers {fitting} at most" if fitting else "Give the cluster more CPUs")
            + (", or fewer --cpus-per-worker." if config.cpus_per_worker else ".")
        )
    if low < high and not use_gpu:
        check_room_beside(nodes, wanted, high)
    together = -(-high // len(nodes))  # workers on one node
    per_node = int(wanted) if use_gpu else int(max(nodes)) // together
    threads = config.threads_per_worker or max(1, per_node)
    # One reader feeds some million tokens per second; each is a process that has to start.
    num_readers = min(int(cpus - high * wanted - 1), 2 * high if use_gpu else 2)
    others = beside if use_gpu else 0
    return Resources((low, high), use_gpu, wanted, threads, max(1, num_readers), others)


def check_room_beside(nodes: list[float], share: float, most: int) -> None:
    """Check that workers leave a CPU to the stream on whatever nodes are left of a cluster.

    Raises:
        NotEnoughResourcesError: with some nodes lost, an elastic group would take every CPU.
    """
    for cpus in nodes:
        workers = min(most, math.floor(cpus / share + 1e-9))
        if cpus - workers * share < STREAM_CPUS:
            raise NotEnoughResourcesError(
                f"{workers} workers of {share:g} CPUs would leave Ray Data no CPU on a node of "
                f"{cpus:g} when other nodes are lost, which a range of --num-workers is for. Give "
                "--cpus-per-worker a number that leaves one free there, or no range."
            )


def elastic_share(nodes: list[float], num_workers: int) -> float | None:
    """Give the most CPUs per worker with which each node keeps one for the stream, if any do."""
    together = -(-num_workers // len(nodes))
    sixteenths = range(int(max(nodes)) * 16, 0, -1)
    for share in (n / 16 for n in sixteenths):
        fitting = [min(num_workers, math.floor(cpus / share + 1e-9)) for cpus in nodes]
        free = min(cpus - n * share for cpus, n in zip(nodes, fitting, strict=True))
        if free >= STREAM_CPUS and sum(fitting) >= num_workers and max(fitting) >= together:
            return share
    return None


def largest_share(nodes: list[float], num_workers: int) -> float:
    """Give the most CPUs that each worker can have, with those of the stream left on some node.

    On one node that is an equal share of the rest; over several, no worker can be split.
    """
    if len(nodes) == 1:
        return (nodes[0] - STREAM_CPUS) / num_workers
    shares = {
        (cpus - kept) / workers
        for cpus in nodes
        for kept in (0, STREAM_CPUS)
        for workers in range(1, num_workers + 1)
    }
    fitting = [share for share in shares if share > 0 and room(nodes, share) >= num_workers]
    return max(fitting, default=(sum(nodes) - STREAM_CPUS) / num_workers)


def room(nodes: list[float], share: float) -> int:
    """Count the workers of a size that find room beside the stream, wherever that has most."""
    slots = [math.floor(cpus / share + 1e-9) for cpus in nodes]
    beside = [math.floor((cpus - STREAM_CPUS) / share + 1e-9) for cpus in nodes]
    lost = min(s - b for s, b, cpus in zip(slots, beside, nodes, strict=True) if cpus >= 1)
    return sum(slots) - lost


def node_cpus(total: float) -> list[float]:
    """List the CPUs of each node that has any; those that an autoscaler adds are like the largest.

    Args:
        total: CPUs of the cluster, at its autoscaler's maximum.
    """
    alive = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    nodes = [float(cpus) for cpus in alive if cpus >= 1]
    if not nodes:
        nodes = [max((node["CPU"] for node in nodes_to_come()), default=total)]
    while sum(nodes) + 1 <= total:
        nodes.append(min(max(nodes), total - sum(nodes)))
    return nodes


def gpus_present() -> int:
    """Count the GPUs of the nodes that are there now."""
    return int(ray.cluster_resources().get("GPU", 0))


def cluster_total() -> dict[str, float]:
    """Give the CPUs and GPUs that the cluster has, or has at its autoscaler's maximum."""
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    now, to_come = ray.cluster_resources(), nodes_to_come()
    return {
        name: max(
            float(now.get(name, 0)),
            float(most.get(name) or 0),
            sum(node[name] for node in to_come),
        )
        for name in ("CPU", "GPU")
    }


def node_sizes() -> list[dict[str, float]]:
    """Give CPUs and GPUs of each node that is there, and of those that an autoscaler may add."""
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [
        *({name: float(n.get(name, 0)) for name in ("CPU", "GPU")} for n in there),
        *nodes_to_come(),
    ]


def nodes_to_come() -> list[dict[str, float]]:
    """List the resources of each node that the cluster's autoscaler may have at a time."""
    return possible_nodes(ray.get_runtime_context().gcs_address)
