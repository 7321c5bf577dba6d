"""How many bytes the ranks send each other in a step: by the shapes of the optimizer's stacks.

`MuonAdamW` gives all gradients of a step to one reduce-scatter for each stack, in the precision in
which the parameters are kept, after the last microbatch; and gathers the updated parameters by one
all-gather for each stack. Together they move what one ring all-reduce of the gradients would.

A stack is padded to a multiple of the ranks, because a rank updates whole matrices. With many more
ranks than layers most of a stack is padding, and padding is sent like the rest.
"""

from dataclasses import dataclass

from nanoray.data.blocks import RECORD_FIELDS
from nanoray.model.gpt import GPTConfig
from nanoray.model.stacks import padding_memory_bytes, stack_shapes

TOTALS_BYTES, NORM_BYTES, INT64_BYTES = 4 * 8, 4, 8


@dataclass(frozen=True)
class Traffic:
    """What one rank sends, and receives, in one step."""

    world_size: int
    gradient_bytes: int
    """Of all gradients, and likewise of all parameters."""
    padding_bytes: int
    """That are sent besides."""
    padding_memory_bytes: float
    """That padding takes on each rank: values, gradients, and its share of sums and averages."""
    summed_bytes: int
    """In three small all-reduces: loss and counts, the record of the rows, the norm."""

    @property
    def stack_bytes(self) -> int:
        """What the reduce-scatters are given, and the all-gathers fill."""
        return self.gradient_bytes + self.padding_bytes

    @property
    def reduce_scatter_bytes(self) -> float:
        """Each way, in a ring: all parts but its own (nccl-tests, doc/PERFORMANCE.md)."""
        return (self.world_size - 1) / self.world_size * self.stack_bytes

    @property
    def all_gather_bytes(self) -> float:
        """Each way, in a ring: every part but one."""
        return self.reduce_scatter_bytes

    @property
    def bytes_per_step(self) -> float:
        """Each way, in a ring: 2 (n-1)/n of all that is summed."""
        small = 2 * (self.world_size - 1) / self.world_size * self.summed_bytes
        return self.reduce_scatter_bytes + self.all_gather_bytes + small


def step_traffic(config: GPTConfig, rows_per_step: int, world_size: int) -> Traffic:
    """Count what a rank of so many sends in a step; nothing if it is alone."""
    stacks = stack_shapes(config)
    return Traffic(
        world_size=world_size,
        gradient_bytes=sum(stack.count * stack.item_bytes for stack in stacks),
        padding_bytes=sum(stack.padding_bytes(world_size) for stack in stacks),
        padding_memory_bytes=padding_memory_bytes(config, world_size),
        summed_bytes=TOTALS_BYTES + NORM_BYTES + rows_per_step * RECORD_FIELDS * INT64_BYTES,
    )
