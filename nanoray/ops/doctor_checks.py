"""From what nodes said of themselves to findings: versions, token, GPUs, disks, shared memory."""

import statistics
from collections.abc import Iterable, Mapping

from nanoray.model.scaling import gpu_peak_flops
from nanoray.ops.doctor_findings import Finding, failed, gb, named, ok, skipped, warning
from nanoray.ops.doctor_links import NodeLinks
from nanoray.ops.doctor_network import (
    AllReduce,
    expected_between,
    expected_inside,
)
from nanoray.ops.doctor_node import NO_NCCL, Node, NodeFacts

DRIVER = "the driver"
RAY_FULL_SHARE = 0.95
"""Ray writes no more objects to a disk that is fuller (local_fs_capacity_threshold)."""
LITTLE_BYTES = 10e9
"""Logs and objects of a long run; with less a warning is due."""
HOT_CELSIUS = 85
SLOW_SHARE, SLOW_CPU_SHARE = 0.9, 0.6
"""Of the median speed: GPUs are all alike, CPUs may be disturbed by others."""
LEAST_PEAK_SHARE = 0.4
"""Of the data sheet: a plain product of large matrices gives 0.6 to 0.8 on a healthy GPU."""
LEAST_NETWORK_SHARE = 0.5
"""Of what the hardware should give, for a message of 256 MB."""


def check_nodes(nodes: Iterable[Node], silent: Mapping[str, str]) -> Finding:
    """Name the nodes that said nothing, with the reason."""
    nodes = list(nodes)
    if silent:
        found = named(f"{name}: {why}" for name, why in silent.items())
        return failed(
            "nodes",
            found,
            "Look at the raylet's log there, or take the node out (ray stop). Code that it lacks "
            "comes with ray job submit --working-dir.",
        )
    cpus, gpus = sum(node.num_cpus for node in nodes), sum(node.num_gpus for node in nodes)
    count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    return ok("nodes", f"{count} with {cpus:g} CPUs and {gpus} GPUs")


def check_versions(driver: Mapping[str, str], facts: Mapping[str, NodeFacts]) -> Finding:
    """Compare the versions of all nodes and the driver; nodes without GPUs have no NCCL."""
    everyone = {DRIVER: driver, **{name: node.versions for name, node in facts.items()}}
    names = dict.fromkeys(key for versions in everyone.values() for key in versions)
    differences = []
    for key in names:
        having = {who: versions[key] for who, versions in everyone.items() if key in versions}
        if len(set(having.values())) > 1:
            differences.append(f"{key} {differing(having)}")
    if differences:
        return failed(
            "versions",
            "; ".join(differences),
            "Install the same everywhere (pip install -c constraints.txt), and start Ray there "
            "again. Code comes to all nodes with ray job submit --working-dir.",
        )
    shown = [f"{key} {driver[key]}" for key in ("Ray", "Python", "torch", "nanoray")]
    return ok("versions", f"equal everywhere: {', '.join(shown)}")


def differing(values: Mapping[str, object]) -> str:
    """Say who has which value, the most common last: "2.59 on a, 2.60 on 7 others"."""
    groups: dict[object, list[str]] = {}
    for who, value in values.items():
        groups.setdefault(value, []).append(who)
    *rare, (common, many) = sorted(groups.items(), key=lambda group: len(group[1]))
    parts = [f"{value} on {named(few)}" for value, few in rare]
    others = named(many) if len(many) < 3 else f"{len(many)} others"
    return ", ".join([*parts, f"{common} on {others}"])


def check_token(needs_token: bool | None) -> Finding:
    """Say whether the cluster refuses strangers."""
    if needs_token is None:
        return skipped("token", "the head did not answer a call without a token")
    if needs_token:
        return ok("token", "the cluster refuses calls without its token")
    return warning(
        "token",
        "the cluster takes calls from anybody who reaches its ports",
        "export RAY_AUTH_MODE=token on every machine before ray start.",
    )


def check_gpus(nodes: Iterable[Node], facts: Mapping[str, NodeFacts]) -> Finding:
    """Compare number, kind and driver of the GPUs of those nodes that have any."""
    having = [node for node in nodes if node.num_gpus and node.name in facts]
    if not having:
        return skipped("GPUs", "no GPU")
    missing = [
        f"{node.name} shows {len(facts[node.name].gpus.gpus)} of the {node.num_gpus} that Ray has"
        for node in having
        if len(facts[node.name].gpus.gpus) < node.num_gpus
    ]
    problems = [f"{n.name}: {p}" for n in having for p in facts[n.name].gpus.problems]
    problems += [
        f"{node.name}: torch {facts[node.name].versions['torch']} is a build without CUDA"
        for node in having
        if facts[node.name].versions.get("NCCL") == NO_NCCL
    ]
    if missing or problems:
        return failed("GPUs", named([*missing, *problems]), "Restart, mend or replace it.")
    kinds = {n.name: gpu.name for n in having for gpu in facts[n.name].gpus.gpus}
    drivers = {n.name: gpu.driver for n in having for gpu in facts[n.name].gpus.gpus}
    counts = {node.name: node.num_gpus for node in having}
    differences = [
        f"{what} {differing(values)}"
        for what, values in (("GPU", kinds), ("driver", drivers), ("count", counts))
        if len(set(values.values())) > 1
    ]
    if differences:
        return warning(
            "GPUs",
            "; ".join(differences),
            "Use nodes of one kind and image: all wait for the slowest.",
        )
    total, name = sum(counts.values()), next(iter(kinds.values()))
    return ok("GPUs", f"{total} x {name}, driver {next(iter(drivers.values()))}")


def check_gpu_health(facts: Mapping[str, NodeFacts]) -> Finding:
    """Name GPUs with errors, with clocks that are held down, or that are too hot."""
    gpus = [
        (f"{name} GPU {gpu.index}", gpu) for name, node in facts.items() for gpu in node.gpus.gpus
    ]
    if not gpus:
        return skipped("GPU health", "no GPU")
    errors = [f"{where}: {gpu.ecc_errors} ECC errors" for where, gpu in gpus if gpu.ecc_errors]
    if errors:
        return failed(
            "GPU health",
            named(errors),
            "Drain the node and have the GPU looked at: its results cannot be trusted.",
        )
    xids = [f"{name}: {xid}" for name, node in facts.items() for xid in node.gpus.xids or ()]
    if xids:
        return warning(
            "GPU health",
            f"since the machine was started: {named(xids)}",
            "Reset the GPU or restart the node; if it comes again, have it looked at.",
        )
    slowed = [f"{where}: {', '.join(gpu.throttled)}" for where, gpu in gpus if gpu.throttled]
    hot = [f"{w}: {g.celsius} C" for w, g in gpus if g.celsius and g.celsius >= HOT_CELSIUS]
    if slowed or hot:
        return warning(
            "GPU health", named([*slowed, *hot]), "See to cooling and power, or leave the node out."
        )
    hottest = max((gpu.celsius or 0 for _, gpu in gpus), default=0)
    state = f"no clocks held down, {hottest} C at most"
    unread = [name for name, node in facts.items() if node.gpus.xids is None]
    if unread:
        return warning(
            "GPU health",
            f"no ECC errors, {state}; the kernel's log of {named(unread)} could not be read",
            "Look for Xid in the output of sudo dmesg there, or let this user read it: "
            "sudo sysctl kernel.dmesg_restrict=0.",
        )
    return ok("GPU health", f"no errors, {state}")


def check_speed(flops: Mapping[str, list[float]], gpu: str | None) -> Finding:
    """Name what computes slower than the median, or than its data sheet lets expect.

    Args:
        flops: of each GPU of a node, or of one thread of it, by the node's name.
        gpu: the GPUs' name, None on CPUs.
    """
    if not flops:
        return skipped("speed", "not measured")
    what, least = ("GPU", SLOW_SHARE) if gpu else ("thread", SLOW_CPU_SHARE)
    each = {
        f"{name} GPU {i}" if gpu else name: value
        for name, values in flops.items()
        for i, value in enumerate(values)
    }
    median = statistics.median(each.values())
    slow = [
        f"{who} makes {value / 1e12:.3g} TFLOP/s, {100 * (1 - value / median):.0f} % below"
        for who, value in each.items()
        if value < least * median
    ]
    found = f"median {median / 1e12:.3g} TFLOP/s per {what}"
    if slow:
        return warning(
            "speed", f"{named(slow)} the {found}", "Every step waits for it: leave its node out."
        )
    peak = gpu_peak_flops(gpu) if gpu else None
    if peak and median < LEAST_PEAK_SHARE * peak:
        return warning(
            "speed",
            f"{found}, {100 * median / peak:.0f} % of the data sheet's {peak / 1e12:.0f}",
            "See what else uses the GPUs, and their power limit: nvidia-smi -q -d POWER.",
        )
    return ok("speed", f"{found}, the slowest {100 * min(each.values()) / median:.0f} % of it")


def check_inside(inside: Mapping[str, AllReduce], gpu: str | None) -> Finding:
    """Compare the all-reduce inside each node with what NVLink should give."""
    if not inside:
        return skipped("all-reduce inside", "one worker on each node, nothing to measure")
    expected = expected_inside(gpu) if gpu else None
    worst = min(inside, key=lambda name: inside[name].bytes_per_second)
    latency = max(each.latency_seconds for each in inside.values())
    found = f"{rate(inside[worst].bytes_per_second)} bus bandwidth at least, {micro(latency)}"
    if expected is None:
        return ok("all-reduce inside", found)
    slow = [n for n, e in inside.items() if e.bytes_per_second < LEAST_NETWORK_SHARE * expected]
    if slow:
        return warning(
            "all-reduce inside",
            f"{named(slow)}: {found}; NVLink gives {rate(expected)}",
            "See nvidia-smi nvlink -s and nvidia-smi topo -m there, and that the fabric manager "
            "runs.",
        )
    return ok("all-reduce inside", f"{found}; NVLink gives {rate(expected)}")


def check_between(between: AllReduce | None, gpu: str | None, links: NodeLinks) -> Finding:
    """Compare the all-reduce over all nodes with the line rate of their network."""
    if between is None:
        return skipped("all-reduce between", "one node, nothing to measure")
    found = (
        f"{between.num_ranks} ranks: {rate(between.bytes_per_second)} bus bandwidth, "
        f"{micro(between.latency_seconds)}"
    )
    if gpu is None:
        return ok("all-reduce between", found)
    of_aws = expected_between(gpu, 0.0)
    if links.is_aws and of_aws and not links.fabric_gbits:
        return warning(
            "all-reduce between",
            f"{found}; AWS's node with such GPUs has {rate(of_aws)} by EFA, and here is no "
            "EFA port",
            "Start the nodes with an EFA interface on each network card (cluster.yaml), from an "
            "image that has its driver.",
        )
    expected = (links.fabric_gbits or links.ethernet_gbits) * 1e9 / 8
    if not expected:
        return ok("all-reduce between", f"{found}; what the network can do is not known")
    what = "the line rate" if links.fabric_gbits else "the line rate of Ethernet"
    found = f"{found}; {what} is {rate(expected)}"
    if between.bytes_per_second >= LEAST_NETWORK_SHARE * expected:
        return ok("all-reduce between", found)
    return warning("all-reduce between", found, remedy_between(links))


def remedy_between(links: NodeLinks) -> str:
    """Say what to look at where the network between nodes gives too little."""
    if not links.fabric_gbits:
        return (
            "See with NCCL_DEBUG=INFO which interface NCCL uses (NCCL_SOCKET_IFNAME), and try more "
            "sockets: NCCL_SOCKET_NTHREADS, NCCL_NSOCKS_PERTHREAD."
        )
    fabric = "EFA" if links.is_aws else "InfiniBand"
    return (
        f"See with NCCL_DEBUG=INFO that NCCL uses {fabric} and not sockets: the plugin, the "
        "security group, NCCL_SOCKET_IFNAME."
    )


def rate(bytes_per_second: float) -> str:
    """Write a bandwidth."""
    return f"{bytes_per_second / 1e9:.3g} GB/s"


def micro(seconds: float) -> str:
    """Write a latency."""
    return f"{1e6 * seconds:.0f} us for 8 bytes"


def check_disks(facts: Mapping[str, NodeFacts]) -> Finding:
    """Name nodes on which Ray's folder is on a disk that is full or nearly so."""
    left = {name: node.temp.free / 1e9 for name, node in facts.items()}
    used = {name: 1 - node.temp.free / node.temp.total for name, node in facts.items()}
    remedy = "Free some space, or start Ray there with --temp-dir on a larger disk."
    full = [n for n, share in used.items() if share > RAY_FULL_SHARE]
    if full:
        found = named(f"{n} is {100 * used[n]:.0f} % full, {left[n]:.1f} GB left" for n in full)
        return failed("disk", f"{found}: Ray writes no more objects there", remedy)
    little = [n for n in facts if facts[n].temp.free < LITTLE_BYTES]
    if little:
        return warning("disk", named(f"{n} has {left[n]:.1f} GB left" for n in little), remedy)
    least = min(left, key=lambda name: left[name])
    return ok("disk", f"{left[least]:.0f} GB left for Ray's sessions, least on {least}")


def check_object_store(
    nodes: Iterable[Node], facts: Mapping[str, NodeFacts], need_bytes: float | None
) -> Finding:
    """Compare the object stores with /dev/shm, and with what the stream of rows needs.

    Args:
        nodes: with the sizes of their stores.
        facts: with the sizes of /dev/shm.
        need_bytes: of the stream; None where the run is not known.
    """
    stores = {node.name: node for node in nodes if node.name in facts}
    small = [
        f"{name} has {shared.total / 1e9:.1f} GB for a store of "
        f"{stores[name].object_store_bytes / 1e9:.1f} GB"
        for name, node in facts.items()
        if (shared := node.shared_memory) and shared.total < stores[name].object_store_bytes
    ]
    if small:
        return warning(
            "object store",
            f"/dev/shm of {named(small)}",
            "Make /dev/shm larger (docker run --shm-size), or start Ray with a smaller "
            "--object-store-memory.",
        )
    training = [node for node in stores.values() if node.trains] or list(stores.values())
    least = min(training, key=lambda node: node.object_store_bytes)
    found = f"{gb(least.object_store_bytes)} at least, on {least.name}"
    if need_bytes is None:
        return ok("object store", found)
    found = f"{found}; the stream needs {gb(need_bytes)}"
    if least.object_store_bytes < need_bytes:
        return warning(
            "object store",
            found,
            "Start Ray there with more --object-store-memory: blocks would go to the disk.",
        )
    return ok("object store", found)
