"""On which nodes actors run, by the nodes' labels and sizes.

Training workers begin all together: on one node where one can hold them, or else on as few as are
free; what coordinates a run goes to the driver's node. Labels are for the rest: an actor that asks
for no CPU may run anywhere, even on a head that is kept free for drivers, or on a spot node that
leaves before it.
"""

import ray

from nanoray.cluster.connection import Resources, node_sizes

Labels = dict[str, str]
"""What Ray calls a label selector: the labels that a node must have, or with `!` must not."""
NODE_ID = "ray.io/node-id"
ON_DEMAND = {"ray.io/market-type": "on-demand"}


def for_computing() -> Labels:
    """Choose the nodes that have CPUs or GPUs; all of them where there is no other."""
    living = [node for node in ray.nodes() if node["Alive"]]
    idle = [n["NodeID"] for n in living if not {"CPU", "GPU"} & n["Resources"].keys()]
    if not idle or len(idle) == len(living):
        return {}
    return {NODE_ID: f"!in({','.join(sorted(idle))})"}


def for_lasting() -> Labels:
    """Choose the nodes that no spot market takes away; all of them where none is known to be so."""
    wanted = ON_DEMAND.items()
    kept = any(node["Alive"] and wanted <= node["Labels"].items() for node in ray.nodes())
    return dict(ON_DEMAND) if kept else {}


def packing(resources: Resources) -> str:
    """Choose how Ray places the workers of a stage.

    All of them on one node is demanded where there is one for them, or may come: scattered over the
    free GPUs of several, every step would wait for the network between them. A group that changes
    its size may outgrow a node.
    """
    least, most = resources.num_workers
    fits_one = any(
        all(node.get(name, 0.0) >= most * n for name, n in resources.each().items())
        for node in node_sizes()
    )
    return "STRICT_PACK" if resources.use_gpu and least == most and fits_one else "PACK"
