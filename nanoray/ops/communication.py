"""How a run scales over nodes: the time of a step's communication beside that of its arithmetic.

An estimate, by three formulas. A ring moves 2 (n-1)/n of the stacks' bytes through every link
(`train/traffic.py`), at the bus bandwidth that `doctor_network.py` expects. A rank computes
FLOPs / (MFU x peak) for its rows; the one with most rows is waited for. Nothing of the two
overlaps, because the reduce-scatter begins after the last backward pass (`train/step.py`).

Not counted: latency (some 20 us to 1 ms for each of eight collectives), passes that are slower
because they have fewer rows, parts of Muon's work that are not shared out evenly, stragglers, and
that a gather runs while the next stack is updated. An MFU that was measured with the communication
of one node in it, as d34's was, counts that twice.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from nanoray.config import InputError
from nanoray.data.blocks import layout_for
from nanoray.model.gpt import GPTConfig
from nanoray.model.memory import memory_per_gpu
from nanoray.ops.doctor_network import LINE_RATE_SHARE, expected_between, expected_inside
from nanoray.train.traffic import Traffic, step_traffic

GPUS_PER_NODE = 8
NODES_IN_TABLE = (1, 2, 4, 8, 16, 32)
MOST_NODES_TRIED = 256
GOOD_EFFICIENCY = 0.9
BACKWARD_SHARE = 2 / 3
"""Of a microbatch's FLOPs: 4 of 6 for each weight (Kaplan et al. 2020, arXiv:2001.08361)."""


@dataclass(frozen=True)
class Links:
    """How fast GPUs talk to each other, in bytes/s."""

    inside: float
    """Bus bandwidth of the links in a node."""
    line_rate: float
    """Of a node's network."""
    inside_source: str
    """Who says so."""
    line_rate_source: str

    @property
    def between(self) -> float:
        """Bus bandwidth that is expected between nodes."""
        return LINE_RATE_SHARE * self.line_rate

    def bus_bandwidth(self, nodes: int) -> float:
        """Give the slowest link of a ring; on its way it leaves each node once."""
        return self.inside if nodes == 1 else min(self.inside, self.between)


@dataclass(frozen=True)
class Work:
    """What a step computes, whoever shares it."""

    model: GPTConfig
    rows_per_step: int
    device_batch_size: int
    row_seconds: float
    """Of one GPU, forward and backward, for one row."""
    gpus_per_node: int
    num_steps: int
    dollars_per_gpu_hour: float
    dtype: str = "bfloat16"
    """Of the computation."""

    @property
    def most_nodes(self) -> int:
        """With more of them a GPU has no row, and the run is refused."""
        return self.rows_per_step // self.gpus_per_node


@dataclass(frozen=True)
class Scaled:
    """A step on some nodes."""

    nodes: int
    traffic: Traffic
    rows_per_gpu: int
    """Of the rank with most rows."""
    microbatches_per_gpu: int
    compute_seconds: float
    """Of the rank with most rows."""
    reduce_scatter_seconds: float
    all_gather_seconds: float
    last_backward_seconds: float
    """Of the last microbatch: behind it a reduce-scatter that began earlier could hide."""
    efficiency: float
    """Useful time: that of the arithmetic if rows were shared out evenly, by that of the step."""
    memory_bytes: float
    """Of one GPU at the peak of a step, padding included."""

    @property
    def communication_seconds(self) -> float:
        """In each step; all of it is waited for."""
        return self.reduce_scatter_seconds + self.all_gather_seconds

    @property
    def step_seconds(self) -> float:
        """From one update to the next."""
        return self.compute_seconds + self.communication_seconds

    @property
    def could_overlap_seconds(self) -> float:
        """Most that a reduce-scatter beside the last backward pass would save."""
        return min(self.reduce_scatter_seconds, self.last_backward_seconds)


def workers_on(nodes: int, most_workers: int | None) -> int:
    """Give the number of GPUs on some nodes: as many as were asked for, else all eight of each.

    Raises:
        InputError: no nodes, or workers that do not fit on them.
    """
    if nodes < 1:
        raise InputError(f"--nodes {nodes} is too small. The least is 1.")
    if most_workers is None:
        return nodes * GPUS_PER_NODE
    if most_workers % nodes or most_workers > nodes * GPUS_PER_NODE:
        raise InputError(
            f"--num-workers {most_workers} does not fit --nodes {nodes}: each has as many, from 1 "
            f"to {GPUS_PER_NODE}. Leave --num-workers out, which takes {nodes * GPUS_PER_NODE}."
        )
    return most_workers


def links_of(
    gpu: str,
    network_gbit: float | None,
    inside_gbyte: float | None,
    gpus_per_node: int = GPUS_PER_NODE,
) -> Links:
    """Decide the bandwidths: those given, else what the doctor expects of such GPUs.

    Args:
        gpu: kind of GPU.
        network_gbit: line rate of a node in Gbit/s.
        inside_gbyte: bus bandwidth in a node in GB/s.
        gpus_per_node: of a node's eight; each has its own cards, an eighth of the network.

    Raises:
        InputError: one is not given, and nobody has measured it for such GPUs.
    """
    inside = 1e9 * inside_gbyte if inside_gbyte else expected_inside(gpu)
    line_rate = expected_between(gpu, network_gbit or 0.0)
    if inside is None:
        raise InputError(
            f"--gpu {gpu} has no known bandwidth inside a node. Give --inside-gbyte, as "
            "jobs/doctor.py measures it (an a100 with NVLink is called a100-sxm)."
        )
    if line_rate is None:
        raise InputError(
            f"--gpu {gpu} has no known network between nodes. Give --network-gbit, of one node."
        )
    if not network_gbit:
        line_rate *= gpus_per_node / GPUS_PER_NODE
    return Links(
        inside,
        line_rate,
        inside_source="--inside-gbyte" if inside_gbyte else f"jobs/doctor.py's figure for {gpu}",
        line_rate_source="--network-gbit" if network_gbit else network_of(gpu, gpus_per_node),
    )


def network_of(gpu: str, gpus_per_node: int) -> str:
    """Say whose network is counted on."""
    nodes = f"AWS's nodes with {gpu}"
    if gpus_per_node == GPUS_PER_NODE:
        return nodes
    return f"{gpus_per_node} of the {GPUS_PER_NODE} GPUs of {nodes}"


def scaled(work: Work, links: Links, nodes: int) -> Scaled:
    """Estimate a step on some nodes, at most `work.most_nodes`."""
    workers = nodes * work.gpus_per_node
    rows, batch = work.rows_per_step, work.device_batch_size
    most_rows = layout_for(rows, batch, workers).most_rows(workers)
    passes = -(-most_rows // batch)
    compute = work.row_seconds * most_rows
    traffic = step_traffic(work.model, rows, workers)
    bandwidth = links.bus_bandwidth(nodes)
    scatter = traffic.reduce_scatter_bytes / bandwidth
    gather = traffic.all_gather_bytes / bandwidth
    memory = memory_per_gpu(work.model, min(batch, most_rows), workers, work.dtype)
    last_rows = most_rows - (passes - 1) * batch
    return Scaled(
        nodes=nodes,
        traffic=traffic,
        rows_per_gpu=most_rows,
        microbatches_per_gpu=passes,
        compute_seconds=compute,
        reduce_scatter_seconds=scatter,
        all_gather_seconds=gather,
        last_backward_seconds=BACKWARD_SHARE * work.row_seconds * last_rows,
        efficiency=work.row_seconds * rows / workers / (compute + scatter + gather),
        memory_bytes=memory.total,
    )


@dataclass(frozen=True)
class Saturation:
    """Where more nodes help less, or not at all."""

    inefficient_nodes: int | None
    """From so many on all have less than 90 % efficiency; None if the most that were tried have it.

    Fewer may have less too, where the rows of a step are not shared out evenly: three nodes, say.
    """
    fastest_nodes: int
    """With which a step is shortest."""
    part_batch_nodes: int
    """Fewest nodes with which a GPU has less than a whole microbatch."""
    most_nodes: int
    """With more there is no row for each GPU."""


def saturation(work: Work, links: Links) -> Saturation:
    """Try the numbers of nodes that have a row for each GPU, up to 256."""
    tried = range(1, min(work.most_nodes, MOST_NODES_TRIED) + 1)
    each = [scaled(work, links, nodes) for nodes in tried]
    last_good = max((s.nodes for s in each if s.efficiency >= GOOD_EFFICIENCY), default=0)
    return Saturation(
        inefficient_nodes=last_good + 1 if last_good < len(each) else None,
        fastest_nodes=min(each, key=lambda s: s.step_seconds).nodes,
        part_batch_nodes=work.rows_per_step // (work.device_batch_size * work.gpus_per_node) + 1,
        most_nodes=work.most_nodes,
    )


def communication_facts(work: Work, links: Links, nodes: int) -> dict[str, Any]:  # Any: JSON
    """Give every number of the section on nodes.

    Raises:
        InputError: there is no row for each GPU of so many nodes.
    """
    if nodes > work.most_nodes:
        raise InputError(
            f"--nodes {nodes} have {nodes * work.gpus_per_node} GPUs, and a step has "
            f"{work.rows_per_step} rows. Give at most {work.most_nodes or 'as many workers'}, or a "
            "larger --total-batch-tokens."
        )
    here, one = (scaled(work, links, n) for n in (nodes, 1))
    listed = [n for n in sorted({*NODES_IN_TABLE, nodes}) if n <= work.most_nodes]
    return {
        "gpus_per_node": work.gpus_per_node,
        "rows_per_step": work.rows_per_step,
        "device_batch_size": work.device_batch_size,
        "inside_bytes_per_second": links.inside,
        "line_rate_bytes_per_second": links.line_rate,
        "inside_source": links.inside_source,
        "line_rate_source": links.line_rate_source,
        "line_rate_share": LINE_RATE_SHARE,
        "between_bytes_per_second": links.between,
        "bus_bytes_per_second": links.bus_bandwidth(nodes),
        **dataclasses.asdict(here.traffic),
        "stack_bytes": here.traffic.stack_bytes,
        "reduce_scatter_bytes": here.traffic.reduce_scatter_bytes,
        "all_gather_bytes": here.traffic.all_gather_bytes,
        "bytes_per_step": here.traffic.bytes_per_step,
        "reduce_scatter_seconds": here.reduce_scatter_seconds,
        "all_gather_seconds": here.all_gather_seconds,
        "overlap_seconds": 0.0,
        "last_backward_seconds": here.last_backward_seconds,
        "could_overlap_seconds": here.could_overlap_seconds,
        "efficiency_if_overlapped": here.efficiency
        * here.step_seconds
        / (here.step_seconds - here.could_overlap_seconds),
        **row_facts(work, here, one),
        "table": [row_facts(work, scaled(work, links, n), one) for n in listed],
        "saturation": dataclasses.asdict(saturation(work, links)),
    }


def row_facts(work: Work, here: Scaled, one: Scaled) -> dict[str, Any]:  # Any: JSON
    """Give what the table says of some nodes, beside one."""
    seconds, workers = here.step_seconds * work.num_steps, here.traffic.world_size
    return {
        "nodes": here.nodes,
        "num_workers": workers,
        "rows_per_gpu": here.rows_per_gpu,
        "microbatches_per_gpu": here.microbatches_per_gpu,
        "compute_seconds": here.compute_seconds,
        "communication_seconds": here.communication_seconds,
        "step_seconds": here.step_seconds,
        "efficiency": here.efficiency,
        "speedup": one.step_seconds / here.step_seconds,
        "hours": seconds / 3600,
        "dollars": seconds / 3600 * workers * work.dollars_per_gpu_hour,
        "memory_bytes": here.memory_bytes,
    }


def communication_text(facts: dict[str, Any], mfu: float) -> str:  # Any: JSON
    """Write the section on nodes for a person."""
    f, n = facts, facts["num_workers"]
    return f"""\
nodes      {f["nodes"]} with {f["gpus_per_node"]} GPUs each: {n}. What follows is estimated; the \
time and cost above leave communication out
sent       by each GPU in a step, and as much received: {gb(f["reduce_scatter_bytes"])} of \
gradients (fp32, reduce-scatter), {gb(f["all_gather_bytes"])} of weights (all-gather)
           = 2 x {n - 1}/{n} x {gb(f["stack_bytes"])}, what a ring all-reduce sends; of these \
{gb(f["padding_bytes"])} are padding, because ranks share out whole matrices
links      {rate(f["inside_bytes_per_second"])} inside a node ({f["inside_source"]}); between \
nodes {100 * f["line_rate_share"]:.0f} % of {f["line_rate_bytes_per_second"] * 8e-9:,.0f} Gbit/s \
({f["line_rate_source"]}): {rate(f["between_bytes_per_second"])}
step       {ms(f["compute_seconds"])} of arithmetic at {100 * mfu:.1f} % MFU + \
{ms(f["communication_seconds"])} of communication = {ms(f["step_seconds"])}: \
{100 * f["efficiency"]:.1f} % efficient, {f["speedup"]:.2f} times as fast as one node
overlap    none: gradients are sent once in a step, after the backward pass of the last microbatch.
           Beside that pass ({ms(f["last_backward_seconds"])}) at most \
{ms(f["could_overlap_seconds"])} of communication would be hidden: \
{100 * f["efficiency_if_overlapped"]:.1f} % efficient

{table_text(f["table"])}

{saturation_text(f)}"""


def table_text(rows: list[dict[str, Any]]) -> str:  # Any: JSON
    """Write the table, a line for each number of nodes."""
    head = (
        "nodes  GPUs  microbatches  rows/GPU  s/step  efficiency  speed-up     hours   dollars"
        "  GiB/GPU"
    )
    lines = [
        f"{row['nodes']:>5}  {row['num_workers']:>4}  {row['microbatches_per_gpu']:>12}  "
        f"{row['rows_per_gpu']:>8}  {row['step_seconds']:>6.3f}  {100 * row['efficiency']:>8.1f} %"
        f"  {row['speedup']:>8.2f}  {row['hours']:>8.1f}  {row['dollars']:>8,.0f}"
        f"  {row['memory_bytes'] / 2**30:>7.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


def saturation_text(facts: dict[str, Any]) -> str:  # Any: JSON
    """Say where more nodes help less, and where they do not help."""
    s = facts["saturation"]
    low, most, part = s["inefficient_nodes"], s["most_nodes"], s["part_batch_nodes"]
    tried = min(most, MOST_NODES_TRIED)
    below = f"from {low} nodes on" if low else f"at no number up to {tried}"
    less = (
        f"From {part} on a GPU has less than a microbatch of {facts['device_batch_size']} rows; "
        if part <= most
        else ""
    )
    over = "over" if less else "Over"
    return (
        f"It falls below {100 * GOOD_EFFICIENCY:.0f} % efficiency {below}; a step is shortest with "
        f"{s['fastest_nodes']}.\n{less}{over} {most} there is no row for each GPU "
        f"(a step has {facts['rows_per_step']})."
    )


def gb(num_bytes: float) -> str:
    """Write a size."""
    return f"{num_bytes / 1e9:.2f} GB"


def rate(bytes_per_second: float) -> str:
    """Write a bandwidth."""
    return f"{bytes_per_second / 1e9:.4g} GB/s"


def ms(seconds: float) -> str:
    """Write the time of a part of a step."""
    return f"{1e3 * seconds:.0f} ms"
