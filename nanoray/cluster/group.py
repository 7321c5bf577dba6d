"""Functions on workers: the one place that knows how Ray Train starts, watches and restarts them.

Ray is told what to run and asked for nothing back: where a run resumes is decided by what is
committed in the run's own storage, so that a restart of a worker, of the driver, and a resubmission
next week are the same thing.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.worker_group import Worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster.connection import Resources
from nanoray.cluster.deadline import Allowance, Deadline
from nanoray.cluster.decisions import Decisions, final_errors
from nanoray.cluster.devices import CPU, gpus_of
from nanoray.cluster.gauges import FailureGauge, RunGauges
from nanoray.cluster.growth import NEVER_SECONDS, Growth
from nanoray.cluster.inspection import allow_inspection
from nanoray.cluster.leaving import Leaving
from nanoray.cluster.monitor import Pulse, Start, forward_logs, start_monitor
from nanoray.cluster.network import NodeNetworkConfig
from nanoray.cluster.pending import Pending
from nanoray.cluster.placement import packing
from nanoray.cluster.recovery import (
    Decision,
    Failure,
    RetryBudget,
    describe_failure,
    raised_there,
)
from nanoray.cluster.reservations import TRAIN_PREFIX, Reservations, refresh
from nanoray.cluster.turns import Turn
from nanoray.cluster.watch import watch
from nanoray.cluster.watchdog import Watchdog
from nanoray.config import InputError, RunFailedError, RunReplacedError
from nanoray.data.feed import Actor
from nanoray.progress import RunDisplay
from nanoray.storage import RunFolder, is_local
from nanoray.train.device import check_device, prepare_process
from nanoray.train.world import Wish, train_with_others

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_SECONDS = 1800
POLL_SECONDS = "0.5"
"""How often Ray Train asks its workers whether they live; on CPUs its two seconds are kept, because
there a question costs the training (docs/measurements.md)."""
ELASTIC_START_SECONDS = "30"
VERDICT_SECONDS = 30.0
"""How long Ray may take to give up a node that does not answer."""


class RayWorld:
    """This worker among the workers of its Ray Train group."""

    def __init__(self, monitor: Actor, pacer: Actor) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        train_with_others(self.world_size > 1)
        self.device = check_device(ray.train.torch.get_device())
        self.monitor, self.pacer = monitor, pacer
        if self.rank == 0:
            run = get_train_context().train_run_context
            monitor.name_reservation.remote(f"{TRAIN_PREFIX}{run.run_id}")
        start = ray.get(monitor.newest_start.remote())
        assert start is not None, "`begin` comes before the workers"
        self.start: Start = start
        self._pulse = Pulse(monitor, start.attempt, self.rank)

    def report(self, step: int, values: dict[str, Any]) -> None:  # Any: JSON
        """Tell the driver what the step did, and the readers how far it has come."""
        self.pacer.consume.remote(values["data/position"], values["data/row"])
        self.monitor.step.remote(self.start.attempt, values)

    def beat(self, doing: str, *, is_step: bool = False) -> None:
        """Tell the watchdog that this rank lives, and what it does."""
        self._pulse.beat(doing, is_step=is_step)

    def wish(self) -> Wish:
        """Say on rank 0 what the driver asks the group to do; nothing elsewhere."""
        if self.rank != 0:
            return Wish.NONE
        self._pulse.listen()
        if self._pulse.must_save:
            self._pulse.must_save = False
            return Wish.SAVE
        return self._pulse.wish


@dataclass(frozen=True)
class Group:
    """What a group of workers does."""

    stage: str
    """Of the run, for its metrics."""
    worker: Callable[[RayWorld, DataIterator], object]
    """Called in every worker with its part of the stream; what rank 0 returns is the result."""
    take_attempt: Callable[[str, int], int]
    """Called before every start with who starts it, and the number of the attempt before it in this
    start of the run, 0 for the first: gives the number of the attempt."""
    begin: Callable[[int], tuple[int, Dataset]]
    """Called after that with the attempt: gives the step from which it goes on, and the stream."""
    newest_step: Callable[[], int]
    """Gives the newest checkpoint, 0 before there is one."""
    record_begin: Callable[[Start, list[str]], float | None]
    """Called when a group has its workers, with its start and the device of each: gives the dollars
    per hour of all that it holds, if that has a price."""
    record: Callable[[int, Failure, Decision], None]
    """Called for each failure with the attempt that failed and what is decided, before there is
    room for another group."""
    device_batch_size: int
    """Rows per forward pass of a worker at the first start."""
    pacer: Actor
    """Paces the stream's readers."""
    resources: Resources
    max_restarts: int
    hang_seconds: float
    allowance: Allowance | None = None
    """What the run may still spend."""


def run_on_workers(group: Group, folder: RunFolder, display: RunDisplay) -> object:
    """Run a group of workers until it is done, starting it again as `RetryBudget` decides.

    Raises:
        InputError: what a worker or `begin` raised as such; it is not tried again.
        RunFailedError: a retry budget is used up.
        RunReplacedError: another start of the run has taken it over.
        KeyboardInterrupt: Ctrl-C; the workers are stopped.
    """
    with contextlib.closing(display), in_turn(Turn(str(folder), group.resources), display) as turn:
        return _run_in_turn(group, folder, display, turn)


@contextlib.contextmanager
def in_turn(turn: Turn, display: RunDisplay) -> Iterator[Turn]:
    """Wait until there is room on the cluster, and hold it for as long as the context lasts."""
    try:
        turn.wait(display.log)
        with turn.kept():
            yield turn
    finally:
        with contextlib.suppress(ray.exceptions.RayError):  # a cluster that has gone has no turns
            turn.leave()


def _run_in_turn(group: Group, folder: RunFolder, display: RunDisplay, turn: Turn) -> object:
    own = f"{int(time.time())}-{os.getpid()}"
    monitor = start_monitor(str(folder), own, on_this_node())
    trainer = make_trainer(group, folder, own, monitor, turn.most_workers())
    reservations = Reservations(folder)
    reservations.release_old()
    guards = [
        Watchdog(monitor, group.hang_seconds).check,
        Growth(monitor, reservations, group.resources, turn).check,
        Pending(monitor, group.resources, display.log).check,
        Leaving(monitor).check,
    ]
    if group.allowance is not None:
        guards.append(Deadline(monitor, group.allowance).check)
    gauges = RunGauges(folder.run, group.stage)
    with watch(monitor, [display.show, gauges.show], display.log, guards, reservations):
        try:
            result: Any = trainer.fit()
            return result.return_value
        except ray.train.TrainingFailedError as error:
            raise _cause(error, ray.get(monitor.finished.remote())) from error
        except SystemExit as stopped:  # how Ray Train answers Ctrl-C
            raise KeyboardInterrupt from stopped


def make_trainer(
    group: Group, folder: RunFolder, own: str, monitor: Actor, most_workers: int
) -> TorchTrainer:
    """Tell Ray Train what to run; `own` names this start of the run."""
    resources = group.resources
    low, high = resources.num_workers[0], most_workers
    # `Leaving` hears of nodes that will go. Ray Train's watcher would be one more process that each
    # group waits for, on any node, and end the group at a deadline that machines often outlive.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if resources.use_gpu:
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    if low < high:  # after a node has died Ray asks for its workers once more: not for a minute
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", ELASTIC_START_SECONDS)
    # Any: Ray's stubs know no function with a result, no elastic group, no callback but Tune's.
    worker: Any = _worker_function(group, monitor)
    scaling: Any = ScalingConfig
    budget = RetryBudget(group.max_restarts, group.device_batch_size)
    counted = FailureGauge(folder.run, group.stage)
    news: Any = [
        FailureNews(monitor, is_elastic=low < high),
        Decisions(monitor, budget, group.newest_step, group.record, counted),
        BeginNews(group, monitor),
    ]
    return TorchTrainer(
        worker,
        scaling_config=scaling(
            num_workers=low if low == high else (low, high),
            use_gpu=resources.use_gpu,
            resources_per_worker=resources.each(),
            placement_strategy=packing(resources),
            elastic_resize_monitor_interval_s=NEVER_SECONDS,
        ),
        torch_config=NodeNetworkConfig(
            backend="nccl" if resources.use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=own,
            storage_path=folder.path(".ray"),
            storage_filesystem=None
            if is_local(folder.fs)
            else PyFileSystem(FSSpecHandler(folder.fs)),
            # Any number: which failures are tried again is decided in `Decisions`.
            failure_config=FailureConfig(max_failures=-1),
            callbacks=news,
        ),
        datasets={"train": Starts(group, monitor).begin},
        dataset_config=DataConfig(
            execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
    )


class FailureNews(ray.train.UserCallback):
    """Tells the monitor what Ray Train's controller knows of workers that ended."""

    def __init__(self, monitor: Actor, *, is_elastic: bool) -> None:
        self.monitor, self.is_elastic = monitor, is_elastic

    def after_exception(
        self,
        run_context: Any,  # Any: Ray's, unused
        worker_exceptions: dict[int, Exception],
    ) -> None:
        """Note the error of each rank; one that could tell itself has done so."""
        for rank, error in worker_exceptions.items():
            failure = describe_failure(error, rank)
            ray.get(self.monitor.fail.remote(None, failure, first_hand=False))
        if self.is_elastic:  # it starts again with as many workers as there is room for
            wait_for_verdict({beat.node for beat in ray.get(self.monitor.silences.remote())})
            refresh()


class BeginNews(WorkerGroupCallback):
    """Tells a run which workers each of its groups has, as soon as they have their places."""

    def __init__(self, group: Group, monitor: Actor) -> None:
        self.group, self.monitor = group, monitor

    def before_init_train_context(self, workers: list[Worker]) -> dict[str, list[Any]]:
        """Record the beginning, after `begin` has decided where; adds nothing to Ray's context.

        A node that has just been lost tells no kind any more, and such a group fails at once.
        """
        with final_errors(self.monitor):
            nodes = [worker.metadata.node_id for worker in workers]
            is_gpu = self.group.resources.use_gpu
            devices = gpus_of(nodes) if is_gpu else [CPU] * len(nodes)
            start = ray.get(self.monitor.newest_start.remote())
            price = self.group.record_begin(start, devices)
        ray.get(self.monitor.hold.remote(price or 0.0))
        return {}


def wait_for_verdict(nodes: set[str]) -> None:
    """Wait until Ray has given up those of the nodes that do not answer."""
    deadline = time.monotonic() + VERDICT_SECONDS
    while time.monotonic() < deadline:
        there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in nodes]
        if all(answers(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in there):
            return
        time.sleep(0.5)


def answers(host: str, port: int) -> bool:
    """Say whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError:
        return False
    return True


def _worker_function(group: Group, monitor: Actor) -> Callable[[], object]:
    """Wrap the worker function in what every worker has to set up and to tell."""

    def run() -> object:
        forward_logs(monitor)
        allow_inspection()
        prepare_process(group.resources.threads_per_worker)
        world = RayWorld(monitor, group.pacer)
        world.beat("starting")
        try:
            result = group.worker(world, ray.train.get_dataset_shard("train"))
        except Exception as error:
            failure, attempt = describe_failure(error, world.rank), world.start.attempt
            ray.get(monitor.fail.remote(attempt, failure, first_hand=True))
            final = raised_there(error)
            if isinstance(final, InputError | RunReplacedError):
                ray.get(monitor.finish.remote(attempt, final))
            raise
        ray.get(monitor.leave.remote(world.start.attempt, world.rank))
        return result

    return run


class Starts:
    """Prepares every start of a group, in Ray Train's controller."""

    def __init__(self, group: Group, monitor: Actor) -> None:
        self.group, self.monitor = group, monitor
        self.driver, self.attempt = name_of_driver(), 0

    def begin(self) -> Dataset:
        """Give the stream of the next group, which has its workers."""
        forward_logs(self.monitor)
        with final_errors(self.monitor):
            self.attempt = self.group.take_attempt(self.driver, self.attempt)
            ray.get(self.monitor.begin_attempt.remote(self.attempt))
            step, dataset = self.group.begin(self.attempt)
            rows = ray.get(self.monitor.rows.remote(self.group.device_batch_size))
            start = Start(self.attempt, step, rows, self.driver)
            ray.get(self.monitor.begin_group.remote(start))
            return dataset


def name_of_driver() -> str:
    """Name this start of a run, for whoever finds that it has taken the run from him."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _cause(
    error: ray.train.TrainingFailedError, told: InputError | RunFailedError | None
) -> Exception:
    """Give the error that the user should see for a run that failed."""
    if told is not None:
        return told
    text = "\n".join(str(error).splitlines()[-40:])
    return RunFailedError(
        f"the run stopped; the same command goes on from the newest checkpoint.\n{text}"
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the driver's node: if that is lost, the run is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
