"""Where the doctor's questions are asked: tasks and actors, each pinned to a node or a GPU.

None of them reserves a CPU, so that they run beside training. GPUs are reserved, and what finds
none free is given up: a benchmark would take from the run what it measures.
"""

import collections
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nanoray.cluster import head
from nanoray.data.feed import Actor
from nanoray.ops.doctor_data import DataFacts, ExpectedData, look_at_data
from nanoray.ops.doctor_findings import named
from nanoray.ops.doctor_memory import StepFacts, try_step
from nanoray.ops.doctor_network import AllReduce, BenchWorker
from nanoray.ops.doctor_node import Node, NodeFacts, describe_node
from nanoray.ops.doctor_storage import StorageFacts, try_storage
from nanoray.stages.training_job import Recipe

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 45.0
"""For a node to describe itself: a filesystem that hangs never comes back."""
START_SECONDS = 30.0
"""For bench workers to start."""
MEASURE_SECONDS = 60.0
STEP_SECONDS = {"cpu": 30.0, "gpu": 120.0}
"""For one step; on a GPU it is compiled as the run's is."""
WORKERS_PER_CPU_NODE = 2


@dataclass(frozen=True)
class Questions:
    """What every node is asked."""

    probe: str | None
    """Address of the driver's probe folder; None where the driver could not write one."""
    data: ExpectedData | None


@dataclass(frozen=True)
class Answers:
    """What a node said."""

    facts: NodeFacts
    storage: StorageFacts | None
    data: DataFacts | None


@dataclass(frozen=True)
class Speeds:
    """What the benchmarks measured."""

    flops: dict[str, list[float]] = field(default_factory=dict)
    """Of each GPU of a node, or of one thread where there are none, by the node's name."""
    inside: dict[str, AllReduce] = field(default_factory=dict)
    """All-reduce between the workers of each node, by its name."""
    between: AllReduce | None = None
    """All-reduce over several nodes."""
    problem: str | None = None
    """Why something was not measured."""
    is_busy: bool = False
    """That was because others hold the GPUs."""


def living_nodes() -> list[Node]:
    """List the nodes of the cluster; the driver must be connected."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    hosts = collections.Counter(node["NodeManagerHostname"] for node in alive)
    nodes = []
    for node in alive:
        host, has = node["NodeManagerHostname"], node["Resources"]
        nodes.append(
            Node(
                id=node["NodeID"],
                name=host if hosts[host] == 1 else f"{host}-{node['NodeID'][:4]}",
                host=host,
                num_cpus=has.get("CPU", 0.0),
                num_gpus=int(has.get("GPU", 0)),
                object_store_bytes=has.get("object_store_memory", 0.0),
                # <temp folder>/session_.../sockets/plasma_store
                temp_folder=os.path.dirname(node["ObjectStoreSocketName"]).rsplit("/", 2)[0],
            )
        )
    return sorted(nodes, key=lambda node: node.name)


def needs_token() -> bool | None:
    """Say whether the head refuses who has no token; None if it cannot be asked."""
    return head.refuses_strangers(ray.get_runtime_context().gcs_address)


def on_node(node: Node) -> dict[str, Any]:  # Any: Ray's options
    """Give the options of what runs on a node, and takes no CPU from others."""
    pinned = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": pinned}


def answer(node: Node, questions: Questions) -> Answers:
    """Answer on the node on which this runs."""
    storage = try_storage(questions.probe, node.id) if questions.probe else None
    data = look_at_data(questions.data) if questions.data else None
    return Answers(describe_node(node), storage, data)


def ask_nodes(nodes: list[Node], questions: Questions) -> dict[str, Answers | str]:
    """Ask all nodes at once; gives the answer of each by its name, or why there is none."""
    task: Any = ray.remote(answer)  # Any: Ray's stubs know no options of a function with two types
    refs = {task.options(max_retries=0, **on_node(n)).remote(n, questions): n.name for n in nodes}
    ready, late = ray.wait(list(refs), num_returns=len(refs), timeout=ANSWER_SECONDS)
    answers: dict[str, Answers | str] = {}
    for ref in ready:
        try:
            answers[refs[ref]] = ray.get(ref)
        except ray.exceptions.RayError as error:
            answers[refs[ref]] = last_line(error)
    for ref in late:
        ray.cancel(ref, force=True)
        answers[refs[ref]] = f"no answer for {ANSWER_SECONDS:.0f} s"
    return answers


def last_line(error: Exception) -> str:
    """Give the last line of what Ray tells of an error: the error itself, without its trace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


@contextlib.contextmanager
def bench_workers(nodes: list[Node]) -> Iterator[list[tuple[Node, Actor]]]:
    """Start one worker per GPU, or two for each node that trains on CPUs; gives those that came."""
    use_gpu = any(node.num_gpus for node in nodes)
    actor: Any = ray.remote(BenchWorker)
    wanted = [
        (node, actor.options(num_gpus=1 if use_gpu else 0, **on_node(node)).remote())
        for node in nodes
        for _ in range(node.num_gpus if use_gpu else WORKERS_PER_CPU_NODE)
        if use_gpu or node.trains
    ]
    try:
        refs = {worker.free_port.remote(): (node, worker) for node, worker in wanted}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=START_SECONDS)
        yield [refs[ref] for ref in refs if ref in set(ready)]
    finally:
        for _, worker in wanted:
            ray.kill(worker)


def measure(nodes: list[Node]) -> Speeds:
    """Measure how fast GPUs or CPUs compute, and how fast they talk inside nodes and between."""
    use_gpu = any(node.num_gpus for node in nodes)
    each = {n.name: n.num_gpus if use_gpu else WORKERS_PER_CPU_NODE * n.trains for n in nodes}
    wanted = sum(each.values())
    if not wanted:  # an autoscaler's head alone
        return Speeds()
    free = ray.available_resources().get("GPU", 0.0)
    if use_gpu and free < wanted:  # known without waiting for workers that cannot start
        held = f"{wanted - int(free)} of {wanted} GPUs are held by others"
        return Speeds(problem=held, is_busy=True)
    with bench_workers(nodes) as workers:
        if len(workers) < wanted:
            return not_started(each, [node.name for node, _ in workers])
        try:
            return measure_workers(workers, use_gpu=use_gpu)
        except ray.exceptions.GetTimeoutError:
            return Speeds(problem=f"the workers did not answer for {MEASURE_SECONDS:.0f} s")
        except ray.exceptions.RayError as error:
            return Speeds(problem=last_line(error))


def not_started(wanted: Mapping[str, int], came: Iterable[str]) -> Speeds:
    """Name the nodes whose bench workers did not start, though Ray had room for them.

    Args:
        wanted: number of workers by the node's name.
        came: the node of each worker that started.
    """
    missing = collections.Counter(wanted) - collections.Counter(came)
    where = named(f"{count} on {name}" for name, count in missing.items())
    counts = f"{missing.total()} of {sum(wanted.values())}"
    return Speeds(problem=f"{counts} bench workers did not start in {START_SECONDS:.0f} s: {where}")


def measure_workers(workers: list[tuple[Node, Actor]], *, use_gpu: bool) -> Speeds:
    """Measure with workers that have started; raises Ray's errors."""
    ranks: dict[str, list[int]] = {}
    for rank, (node, _) in enumerate(workers):
        ranks.setdefault(node.name, []).append(rank)
    speed = {} if use_gpu else {name: [of_node[0]] for name, of_node in ranks.items()}
    flops = collect(workers, speed or ranks, lambda worker, rank: worker.flops.remote())
    inside = [of_node for of_node in ranks.values() if len(of_node) > 1]
    # On CPUs one worker of a node: two would share its cores and its network.
    across = [rank for of_node in ranks.values() for rank in (of_node if use_gpu else of_node[:1])]
    groups = [*inside, *([across] if len(ranks) > 1 else [])]
    if not groups:
        return Speeds(flops)
    host = ray.get(workers[0][1].__ray_call__.remote(own_address), timeout=MEASURE_SECONDS)
    port = ray.get(workers[0][1].free_port.remote(), timeout=MEASURE_SECONDS)
    joined = [
        worker.join.remote(host, port, rank, len(workers), groups)
        for rank, (_, worker) in enumerate(workers)
    ]
    ray.get(joined, timeout=MEASURE_SECONDS)
    group_of = {rank: number for number, members in enumerate(inside) for rank in members}
    each = collect(
        workers,
        {name: of_node for name, of_node in ranks.items() if len(of_node) > 1},
        lambda worker, rank: worker.all_reduce.remote(group_of[rank]),
    )
    between = None
    if len(ranks) > 1:
        found = [workers[rank][1].all_reduce.remote(len(inside)) for rank in across]
        between = ray.get(found, timeout=MEASURE_SECONDS)[0]
    ray.get([worker.leave.remote() for _, worker in workers], timeout=MEASURE_SECONDS)
    return Speeds(flops, {name: results[0] for name, results in each.items()}, between)


def collect(
    workers: list[tuple[Node, Actor]],
    ranks: dict[str, list[int]],
    call: Callable[[Actor, int], Any],
) -> dict[str, list[Any]]:  # Any: what the workers give
    """Call workers of all nodes at once; gives the results of each node."""
    refs = {name: [call(workers[r][1], r) for r in of_node] for name, of_node in ranks.items()}
    return {name: ray.get(each, timeout=MEASURE_SECONDS) for name, each in refs.items()}


def own_address(worker: object) -> str:
    """Give the address of the node on which a worker runs."""
    return str(ray.util.get_node_ip_address())


def probe_step(node: Node, recipe: Recipe, *, eager: bool, threads: int) -> StepFacts | str | None:
    """Make one step of the real model on a node, in a process of its own.

    Returns:
        What it took; why it failed, be it that the kernel killed the process; None if it did not
        end in time.
    """
    seconds = STEP_SECONDS["gpu" if node.num_gpus else "cpu"]
    # Any: not in Ray's stubs. One call, because the process has bounded its memory.
    once: Any = ray.remote(max_calls=1)
    ref = (
        once(try_step)
        .options(max_retries=0, num_gpus=1 if node.num_gpus else 0, **on_node(node))
        .remote(recipe, eager=eager, threads=threads)
    )
    try:
        return ray.get(ref, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        return None
    except ray.exceptions.RayError as error:
        return last_line(error)
