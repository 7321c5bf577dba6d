"""How the optimizer lays a model out: stacks of one shape, padded so that all ranks share them.

A rank updates whole matrices, so a stack is padded to a multiple of the ranks
(`train/optimizer.py`). With many more ranks than layers most of a stack is padding, which is kept,
and sent, like the rest.
"""

from dataclasses import dataclass

from nanoray.model.gpt import GPTConfig

MASTER_BYTES = 4
"""Of a parameter and its gradient: masters are fp32."""


@dataclass(frozen=True)
class StackShape:
    """Parameters of one shape, which the optimizer shares out together."""

    count: int
    """Matrices of the blocks, or rows of an embedding."""
    item_bytes: int
    """Of one of them."""
    num_averages: int
    """That the optimizer keeps of each parameter."""

    def padding_bytes(self, world_size: int) -> int:
        """Count the bytes that make the stack divisible by the ranks."""
        return -self.count % world_size * self.item_bytes


def stack_shapes(config: GPTConfig) -> list[StackShape]:
    """List the stacks of a model: matrices of the blocks by their shape, and both embeddings."""
    D, V = config.model_dim, config.vocab_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden = config.mlp_ratio * D
    counts: dict[tuple[int, int], int] = {}
    for shape in ((queries, D), (keys, D), (keys, D), (D, queries), (hidden, D), (D, hidden)):
        counts[shape] = counts.get(shape, 0) + config.num_layers
    embedding_bytes = 2 if config.embedding_dtype == "bfloat16" else MASTER_BYTES
    matrices = [
        StackShape(count, rows * cols * MASTER_BYTES, num_averages=1)
        for (rows, cols), count in counts.items()
    ]
    embeddings = [StackShape(V, D * size, 2) for size in (MASTER_BYTES, embedding_bytes)]
    return embeddings + matrices


def padding_memory_bytes(config: GPTConfig, world_size: int) -> float:
    """Count what padding takes on a rank: values, gradients, its share of sums and averages."""
    return sum(
        stack.padding_bytes(world_size) * (2 + (1 + stack.num_averages) / world_size)
        for stack in stack_shapes(config)
    )
