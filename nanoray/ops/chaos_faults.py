"""What can happen to a run: each fault is done to real processes, files and nodes.

Each function does its harm and gives a `Harm`: what was done, and how it is made good.
"""

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.monitor import Beat, find_monitor
from nanoray.cluster.watchdog import kill_workers, on_node
from nanoray.config import InputError
from nanoray.ops.chaos_job import WatchedJob
from nanoray.ops.local_cluster import LocalCluster
from nanoray.ops.spot_notice import drain_node
from nanoray.storage import StageFolder, is_local
from nanoray.train.checkpoint_files import committed_steps, step_name

logger = logging.getLogger(__name__)

BALLAST = "chaos.ballast"
DAMAGED_BYTES = 4096


def nothing() -> None:
    """Make nothing good."""


@dataclass(frozen=True)
class Harm:
    """What was done to a run."""

    what: str
    mend: Callable[[], None] = nothing
    """Makes it good."""
    mend_after: float = 0.0
    """Seconds until then."""
    stops_training: bool = True
    """The workers have to start again; else training goes on without checkpoints."""
    at: float = field(default_factory=time.time)
    """When it was done."""


@dataclass
class Target:
    """The run that is harmed, and what it runs on."""

    job: WatchedJob
    folder: StageFolder
    rng: random.Random
    outage_seconds: float
    cluster: LocalCluster | None
    """None for a cluster that somebody else has started, which replaces its nodes itself."""
    ranks: list[Beat] = field(default_factory=list)
    """The workers, as they were last seen."""

    def is_training(self) -> bool:
        """Say whether every rank has made a step since it started; notes where they are."""
        monitor = find_monitor(str(self.folder.run))
        try:
            beats: list[Beat] = ray.get(monitor.silences.remote()) if monitor else []
        except ray.exceptions.RayError:  # it has just ended with its driver
            return False
        self.ranks = beats
        return bool(beats) and all(beat.is_training for beat in beats)

    def pick_rank(self) -> Beat:
        """Choose one worker."""
        return self.rng.choice(sorted(self.ranks, key=lambda beat: beat.rank))

    def pick_node(self) -> str:
        """Choose a node with workers on it, not the one that the run depends on."""
        monitor = find_monitor(str(self.folder.run))
        home = ray.get(monitor.node.remote()) if monitor else ""
        nodes = sorted({beat.node for beat in self.ranks} - {home})
        if not nodes:
            raise InputError(
                "All workers are on the node of the driver, and no run survives the loss of that "
                "one. Give the cluster another node, or leave out node, partition and preemption."
            )
        return self.rng.choice(nodes)

    def add_node(self) -> None:
        """Start a node in place of one that was lost; elsewhere an autoscaler does."""
        if self.cluster is not None:
            self.cluster.add_node()


def kill_worker(target: Target) -> Harm:
    """Kill one worker as `kill -9` does."""
    victim = target.pick_rank()
    kill_workers([victim])
    return Harm(f"killed rank {victim.rank}, process {victim.pid}")


def freeze_worker(target: Target) -> Harm:
    """Stop one worker, so that it does nothing and says nothing."""
    victim = target.pick_rank()
    on_node(victim.node, stop_processes, [victim.pid])
    return Harm(f"stopped rank {victim.rank}, process {victim.pid}")


def kill_driver(target: Target) -> Harm:
    """Kill the job itself; the same command is given again at once."""
    target.job.kill()
    return Harm(f"killed the driver, process {target.job.pid}", target.job.start)


def kill_node(target: Target) -> Harm:
    """Kill all processes of a node at once, as a loss of power does; another one joins later."""
    node = target.pick_node()
    tell_node(node, kill_this_node)
    return Harm(f"killed node {node[:8]}", target.add_node, target.outage_seconds)


def cut_off_node(target: Target) -> Harm:
    """Stop all processes of a node for a while, as a network that is cut does."""
    node = target.pick_node()
    tell_node(node, stop_this_node, target.outage_seconds)
    # Ray gives up a node that was silent, also when it speaks again: another one has to join.
    return Harm(f"cut off node {node[:8]}", target.add_node, target.outage_seconds)


def preempt_node(target: Target) -> Harm:
    """Give a node its notice, as a cloud does for a spot machine, and take it away in time."""
    node, seconds = target.pick_node(), target.outage_seconds
    # A node that is drained takes no new work: what ends it is there before.
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    actor: Any = ray.remote(NodeKiller).options(num_cpus=0, scheduling_strategy=there)
    killer = actor.remote()
    ray.get(killer.wake.remote())
    problem = drain_node(ray.get_runtime_context().gcs_address, node, "chaos", seconds)
    if problem is not None:
        raise InputError(f"ray drain-node did not work: {problem}")

    def take_away() -> None:
        ray.wait([killer.kill.remote()], timeout=0.1)
        target.add_node()

    return Harm(f"gave node {node[:8]} notice of {seconds:.0f} s", take_away, seconds)


def fill_disk(target: Target) -> Harm:
    """Fill the filesystem of the storage, and free it again."""
    if not is_local(target.folder.fs):
        raise InputError("The fault disk needs a local folder as --storage.")
    root = target.folder.run.root
    if os.stat(root).st_dev in {os.stat(place).st_dev for place in ("/", "/tmp", "/dev/shm")}:
        raise InputError(
            f"The fault disk would fill the disk of this machine, on which {root} lies. Give a "
            "--storage that is a filesystem of its own: mount -t tmpfs -o size=300m tmpfs FOLDER"
        )
    ballast = os.path.join(os.path.dirname(root), BALLAST)
    try:
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    except BaseException:  # Ctrl-C: nobody else knows of it yet
        os.remove(ballast)
        raise
    size = os.path.getsize(ballast)
    return Harm(
        f"filled the disk with {size / 1e6:.0f} MB",
        lambda: os.remove(ballast),
        target.outage_seconds,
        stops_training=False,
    )


def break_storage(target: Target) -> Harm:
    """Put a file in the place of the folder of checkpoints, and take it away again."""
    if not is_local(target.folder.fs):
        raise InputError("The fault storage needs a local folder as --storage.")
    path = target.folder.path("checkpoints")
    os.rename(path, f"{path}.away")
    while os.path.isdir(path):  # a writer has made it anew, with its folder in it
        shutil.rmtree(path, ignore_errors=True)
    with open(path, "w"):
        pass

    def mend() -> None:
        os.remove(path)
        os.rename(f"{path}.away", path)

    return Harm("made the storage fail", mend, target.outage_seconds, stops_training=False)


def damage_checkpoint(target: Target) -> Harm:
    """Zero a block of the newest weights, which a torch file would load, and kill a worker."""
    if not is_local(target.folder.fs):
        raise InputError("The fault damage needs a local folder as --storage.")
    steps = committed_steps(target.folder)
    if not steps:
        raise InputError(
            f"The fault damage needs a checkpoint, and {target.folder} has none yet. Give "
            "--pretrain a smaller --save-every."
        )
    step = steps[-1]
    weights = target.folder.path("checkpoints", step_name(step), "model.safetensors")
    with open(weights, "r+b") as file:
        file.seek(os.path.getsize(weights) // 2)
        file.write(bytes(DAMAGED_BYTES))
    return Harm(f"damaged step {step} and {kill_worker(target).what}")


FAULTS: dict[str, Callable[[Target], Harm]] = {
    "worker": kill_worker,
    "freeze": freeze_worker,
    "driver": kill_driver,
    "node": kill_node,
    "partition": cut_off_node,
    "preemption": preempt_node,
    "storage": break_storage,
    "disk": fill_disk,
    "damage": damage_checkpoint,
}
HARM_CHECKPOINTS = ("damage",)
"""Those for which there must be a checkpoint."""


def tell_node(node: str, work: Any, *arguments: Any) -> None:  # Any: a function, what it takes
    """Call a function on a node, which will not answer."""
    on_node(node, wake, None)  # a process that has to start first would blur the moment
    where = NodeAffinitySchedulingStrategy(node, soft=False)
    task: Any = ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    ray.wait([task.remote(*arguments)], timeout=0.1)


def wake(_: None) -> None:
    """Do nothing."""


def processes_of_this_node() -> list[psutil.Process]:
    """Give all processes of the node that this worker process belongs to, itself last."""
    me = psutil.Process()
    raylet = next(p for p in me.parents() if p.name().startswith("raylet"))
    return [p for p in (raylet, *raylet.children(recursive=True)) if p.pid != me.pid] + [me]


class NodeKiller:
    """Waits on a node for its end."""

    def wake(self) -> None:
        """Do nothing."""

    def kill(self) -> None:
        """End the node."""
        kill_this_node()


def kill_this_node() -> None:
    """End all processes of this node, as a loss of power does."""
    for process in processes_of_this_node():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def stop_this_node(seconds: float) -> None:
    """Stop all processes of this node for so many seconds."""
    pids = [str(process.pid) for process in processes_of_this_node()]
    later = f"sleep {seconds}; kill -CONT {' '.join(pids)}"
    subprocess.Popen(["sh", "-c", later], start_new_session=True)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGSTOP)
    time.sleep(seconds)


def stop_processes(pids: list[int]) -> None:
    """Stop processes of this node."""
    for pid in pids:
        psutil.Process(pid).suspend()
