"""What a training step keeps in a device's memory, part by part.

Sizes follow from the shapes; what autograd saves per layer was counted on the compiled model with
saved-tensor hooks (docs/measurements.md). What it cannot know: fragmentation of the allocator, and
the workspaces of cuBLAS, cuDNN and NCCL.
"""

from dataclasses import dataclass

from nanoray.model.gpt import DTYPES, GPTConfig
from nanoray.model.loss import GPU_CHUNK_BYTES
from nanoray.model.scaling import num_parameters
from nanoray.model.stacks import padding_memory_bytes

SAVED_BYTES_PER_TOKEN_AND_DIM = 36
"""Of one layer, in bf16: the stream twice, both norms, q, k and v, q and k before their norm, the
mixed heads, and the MLP's hidden layer before and after its activation (4 D wide)."""
CONTEXT_BYTES = 1.5e9
"""CUDA context, and the buffers of NCCL and cuBLAS: an allowance."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device at the peak of a step."""

    weights: float
    """fp32 masters."""
    gradients: float
    """fp32, of all parameters."""
    gradient_share: float
    """This rank's share of the summed gradients."""
    optimizer_state: float
    """This rank's share: one average for each matrix of the blocks, two for the embeddings."""
    padding: float
    """What makes the optimizer's stacks divisible by the ranks, in all of the above."""
    weight_copies: float
    """Weights in the compute dtype, kept from forward to backward."""
    activations: float
    """What autograd keeps of all layers, for one microbatch."""
    logits: float
    """Logits of a chunk and their gradient, and the unembedding's gradient."""
    context: float = CONTEXT_BYTES

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return sum(vars(self).values())


def memory_per_gpu(
    config: GPTConfig, device_batch_size: int, world_size: int, dtype: str = "bfloat16"
) -> MemoryEstimate:
    """Estimate the memory of one GPU that computes in `dtype`, with fp32 masters."""
    D, V, L, T = config.model_dim, config.vocab_size, config.num_layers, config.max_seq_len
    params = num_parameters(config)
    embeddings = 2 * V * D
    matrices = params - embeddings
    tokens = device_batch_size * T
    chunk = min(tokens * V * 2, GPU_CHUNK_BYTES)
    alone = world_size == 1
    width = DTYPES[dtype].itemsize / DTYPES["bfloat16"].itemsize
    return MemoryEstimate(
        weights=4 * params,
        gradients=4 * params,
        gradient_share=0 if alone else 4 * params / world_size,
        optimizer_state=(4 * matrices + 8 * embeddings) / world_size,
        padding=padding_memory_bytes(config, world_size),
        weight_copies=width * (2 * matrices + 2 * V * D),
        activations=width * SAVED_BYTES_PER_TOKEN_AND_DIM * D * tokens * L,
        logits=width * (2 * chunk + (2 + 4) * V * D),
    )
