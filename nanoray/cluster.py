"""Functions on workers: the one place that knows how Ray Train starts, watches and restarts them.

Ray is told what to run and asked for nothing back: where a run resumes is decided by what is
committed in the run's own storage, so that a restart of a worker, of the driver, and a resubmission
next week are the same thing.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.data import DataIterator, Dataset, ExecutionOptions
from ray.train import DataConfig, FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.config import InputError, RunFailedError
from nanoray.connection import Resources
from nanoray.data.feed import Actor
from nanoray.progress import RunDisplay
from nanoray.storage import RunFolder, is_local

logger = logging.getLogger(__name__)

COLLECTIVE_TIMEOUT_SECONDS = 1800
PREEMPTION_CHECK_STEPS = 10
"""The question is a barrier over all ranks, so it is not asked at every step."""
WATCH_SECONDS = 0.5


class Monitor:
    """An actor that carries news from the workers to the driver."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []  # Any: JSON
        self.lines: list[str] = []
        self.input_error: InputError | None = None

    def step(self, values: dict[str, Any]) -> None:  # Any: JSON
        """Note what a step did."""
        self.steps.append(values)

    def log(self, line: str) -> None:
        """Note a line for the driver's log."""
        self.lines.append(line)

    def refuse(self, error: InputError) -> None:
        """Note an error that another start of the group cannot cure."""
        self.input_error = error

    def refused(self) -> InputError | None:
        """Give that error."""
        return self.input_error

    def take(self) -> tuple[list[dict[str, Any]], list[str]]:  # Any: JSON
        """Give what has come since the last call."""
        steps, lines, self.steps, self.lines = self.steps, self.lines, [], []
        return steps, lines


class MonitorHandler(logging.Handler):
    """Sends log records of this process to the driver."""

    def __init__(self, monitor: Actor) -> None:
        super().__init__(logging.INFO)
        self.monitor = monitor

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        self.monitor.log.remote(level + record.getMessage())


def forward_logs(monitor: Actor) -> None:
    """Send what nanoray logs in this process to the driver."""
    package = logging.getLogger("nanoray")
    package.setLevel(logging.INFO)
    package.handlers = [h for h in package.handlers if not isinstance(h, MonitorHandler)]
    package.addHandler(MonitorHandler(monitor))


class RayWorld:
    """This worker among the workers of its Ray Train group."""

    def __init__(self, monitor: Actor, pacer: Actor) -> None:
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.monitor, self.pacer = monitor, pacer
        self._noticed = False

    def report(self, step: int, values: dict[str, Any]) -> None:  # Any: JSON
        """Tell the driver what the step did, and the readers how far it has come."""
        self.pacer.consume.remote(values["data/position"], values["data/row"])
        self.monitor.step.remote(values)

    def leaving_soon(self, step: int) -> bool:
        """Say once, when a node of the group is to be taken away, that it is."""
        if self._noticed or step % PREEMPTION_CHECK_STEPS:
            return False
        self._noticed = ray.train.get_preemption_info() is not None
        return self._noticed


@dataclass(frozen=True)
class Group:
    """What a group of workers does."""

    worker: Callable[[RayWorld, DataIterator], object]
    """Called in every worker with its part of the stream; what rank 0 returns is the result."""
    begin: Callable[[], Dataset]
    """Called before every start: decides where to resume, and gives the stream from there."""
    pacer: Actor
    """Paces the stream's readers."""
    resources: Resources
    max_restarts: int


def run_on_workers(group: Group, folder: RunFolder, display: RunDisplay) -> object:
    """Run a group of workers until it is done, starting it again when a worker dies.

    Raises:
        InputError: what a worker or `begin` raised as such; it is not tried again.
        RunFailedError: the group died more than `max_restarts` times.
        KeyboardInterrupt: Ctrl-C; the workers are stopped.
    """
    actor: Any = ray.remote(Monitor).options(num_cpus=0, scheduling_strategy=on_this_node())
    monitor: Actor = actor.remote()
    own = f"{int(time.time())}-{os.getpid()}"
    resources = group.resources
    each = {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}
    low, high = resources.num_workers
    worker: Any = _worker_function(
        group, monitor
    )  # Any: Ray's stubs want a function without a result
    num_workers: Any = high if low == high else (low, high)  # Any: and no range of workers
    trainer = TorchTrainer(
        worker,
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker=each,
        ),
        torch_config=TorchConfig(
            backend="nccl" if resources.use_gpu else "gloo", timeout_s=COLLECTIVE_TIMEOUT_SECONDS
        ),
        run_config=ray.train.RunConfig(
            name=own,
            storage_path=folder.path(".ray"),
            storage_filesystem=None
            if is_local(folder.fs)
            else PyFileSystem(FSSpecHandler(folder.fs)),
            failure_config=FailureConfig(max_failures=group.max_restarts),
        ),
        datasets={"train": _begin_function(group, monitor)},
        dataset_config=DataConfig(
            execution_options=ExecutionOptions(preserve_order=True), enable_shard_locality=False
        ),
    )
    with watch(monitor, display):
        try:
            result: Any = trainer.fit()
            return result.return_value
        except ray.train.TrainingFailedError as error:
            raise _cause(error, ray.get(monitor.refused.remote())) from error
        except SystemExit as stopped:  # how Ray Train answers Ctrl-C
            raise KeyboardInterrupt from stopped


def _worker_function(group: Group, monitor: Actor) -> Callable[[], object]:
    """Wrap the worker function in what every worker has to set up."""

    def run() -> object:
        forward_logs(monitor)
        torch.set_num_threads(group.resources.threads_per_worker)
        world = RayWorld(monitor, group.pacer)
        try:
            return group.worker(world, ray.train.get_dataset_shard("train"))
        except InputError as error:
            ray.get(monitor.refuse.remote(error))
            raise

    return run


def _begin_function(group: Group, monitor: Actor) -> Callable[[], Dataset]:
    """Wrap `begin`, which runs in Ray Train's controller: wrong input is not tried again."""

    def begin() -> Dataset:
        forward_logs(monitor)
        refused = ray.get(monitor.refused.remote())
        if refused is not None:
            raise refused
        try:
            return group.begin()
        except InputError as error:
            ray.get(monitor.refuse.remote(error))
            raise

    return begin


def _cause(error: ray.train.TrainingFailedError, refused: InputError | None) -> Exception:
    """Give the error that the user should see for a run that failed."""
    if refused is not None:
        return refused
    text = "\n".join(str(error).splitlines()[-40:])
    return RunFailedError(
        f"the run stopped; the same command goes on from the newest checkpoint.\n{text}"
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place an actor on the driver's node: if that is lost, the run is."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


@contextlib.contextmanager
def watch(monitor: Actor, display: RunDisplay) -> Iterator[None]:
    """Show the news of the workers for as long as the context lasts."""
    done = threading.Event()

    def show_news() -> None:
        steps, lines = ray.get(monitor.take.remote())
        for line in lines:
            display.log(line)
        for values in steps:
            display.show(values)

    def loop() -> None:
        # A cluster that has gone is reported by `fit`, which raises in the main thread.
        with contextlib.suppress(ray.exceptions.RayError):
            while not done.wait(WATCH_SECONDS):
                show_news()

    thread = threading.Thread(target=loop, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(ray.exceptions.RayError):
            show_news()
        display.close()
