"""Chunks to logits: lays the tokens of a step out for the model, which keeps the KV cache."""

import itertools

import torch
from torch import Tensor

from nanoray.inference.blocks import NULL_BLOCK
from nanoray.inference.decode_graphs import DecodeGraphs
from nanoray.inference.scheduler import Chunk
from nanoray.model.attention import fastest_kernels
from nanoray.model.gpt import GPT
from nanoray.model.kv_cache import CacheLayout, KVCache, Span


class Runner:
    """A model with its cache; computes what the scheduler chose."""

    def __init__(self, model: GPT, num_blocks: int, block_size: int) -> None:
        config = model.config
        self.model = model
        self.device = model.unembedding.weight.device
        self.block_size = block_size
        shape = (config.num_layers, config.num_kv_heads, config.head_dim)
        dtype = model.compute_dtype
        # One block more than the block manager knows of: the one that padding writes to.
        self.cache = KVCache(shape, num_blocks + 1, block_size, dtype, self.device)
        self.graphs: DecodeGraphs | None = None
        if self.device.type == "cuda":
            self.graphs = DecodeGraphs(model, self.cache, num_blocks)

    @torch.inference_mode()
    def run(self, chunks: list[Chunk], cleared_blocks: list[int]) -> list[Tensor | None]:
        """Compute a step.

        Args:
            chunks: at least one; single tokens before longer chunks.
            cleared_blocks: they have a new owner.

        Returns:
            For each chunk the logits, fp32, that are needed of it: of its last token, (1, V), if
            the next one is to be drawn; of all its tokens, (num_tokens, V), if the prompt's
            log-probabilities are wanted; else None.
        """
        if cleared_blocks:
            self.cache.clear(cleared_blocks)
        hidden = self._hidden(chunks)  # (N, D)
        ends = list(itertools.accumulate(chunk.end - chunk.start for chunk in chunks))
        wanted = [self._wanted_rows(chunk, end) for chunk, end in zip(chunks, ends, strict=True)]
        rows = [row for part in wanted for row in part]
        if not rows:
            return [None] * len(chunks)
        logits = self.model.logits(hidden[torch.tensor(rows, device=self.device)])
        parts = logits.split([len(part) for part in wanted])
        return [part if len(part) else None for part in parts]

    def _hidden(self, chunks: list[Chunk]) -> Tensor:
        """Compute the normed residual stream of all tokens of a step, (N, D)."""
        tokens = [t for chunk in chunks for t in chunk.sequence.tokens[chunk.start : chunk.end]]
        ids, layout = self._tensor(tokens), self.layout(chunks)
        with fastest_kernels(self.device, same_shapes=False):
            if self.graphs is not None and not layout.spans:
                return self.graphs.hidden(ids, layout)
            return self.model.hidden_cached(ids, self.cache, layout)

    def _wanted_rows(self, chunk: Chunk, end: int) -> list[int]:
        """Give the rows of the pass whose logits are needed; the chunk's last row is `end` - 1."""
        sequence = chunk.sequence
        if sequence.params.prompt_logprobs and chunk.start < sequence.num_prompt - 1:
            return list(range(end - (chunk.end - chunk.start), end))
        return [end - 1] if chunk.reaches_end else []

    def layout(self, chunks: list[Chunk]) -> CacheLayout:
        """Say where the tokens of a step stand in the cache."""
        size = self.block_size
        positions = [place for chunk in chunks for place in range(chunk.start, chunk.end)]
        slots = [
            chunk.sequence.table.blocks[place // size] * size + place % size
            for chunk in chunks
            for place in range(chunk.start, chunk.end)
        ]
        singles = [chunk for chunk in chunks if chunk.end - chunk.start == 1]
        tables = [chunk.sequence.table.blocks[: -(-chunk.end // size)] for chunk in singles]
        widest = max((len(table) for table in tables), default=0)
        padded = [table + [NULL_BLOCK] * (widest - len(table)) for table in tables]
        spans, row = [], len(singles)
        for chunk in chunks[len(singles) :]:
            blocks = chunk.sequence.table.blocks[: -(-chunk.end // size)]
            end = row + chunk.end - chunk.start
            spans.append(Span(row, end, chunk.start, self._tensor(blocks)))
            row = end
        return CacheLayout(
            self._tensor(positions),
            self._tensor(slots),
            self._tensor(padded).view(len(padded), widest),
            tuple(spans),
        )

    def _tensor(self, numbers: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64, device=self.device)
