"""Decode steps as CUDA graphs: launching a layer's kernels one by one takes longer than they run.

A graph has fixed shapes, so a step is padded to the next power of two of sequences and of blocks,
and each such pair has its own graph, captured when it is first needed. Padding computes a token of
nobody: it writes to a block that no sequence owns, and what comes of it is cut off.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanoray.model.gpt import GPT
from nanoray.model.kv_cache import CacheLayout, KVCache

WARM_UPS = 2
"""Runs before the capture, in which libraries allocate what they keep."""


@dataclass(frozen=True)
class Captured:
    """One graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    layout: CacheLayout
    hidden: Tensor


class DecodeGraphs:
    """The graphs of one model and cache."""

    def __init__(self, model: GPT, cache: KVCache, spare_block: int) -> None:
        """Keep what is captured; `spare_block` is the one that padding writes to."""
        self.model, self.cache = model, cache
        self.spare_slot = spare_block * cache.block_size
        self._captured: dict[tuple[int, int], Captured] = {}
        self._memory = torch.cuda.graph_pool_handle()

    def hidden(self, ids: Tensor, layout: CacheLayout) -> Tensor:
        """Do what `GPT.hidden_cached` does for single tokens: (S,) ids -> (S, D)."""
        S = ids.size(0)
        padded_ids, padded = pad(ids, layout, self.spare_slot)
        shape = (padded_ids.size(0), padded.tables.size(1))
        if shape not in self._captured:
            self._captured[shape] = self._capture(padded_ids, padded)
        captured = self._captured[shape]
        captured.ids.copy_(padded_ids)
        captured.layout.positions.copy_(padded.positions)
        captured.layout.slots.copy_(padded.slots)
        captured.layout.tables.copy_(padded.tables)
        captured.graph.replay()
        return captured.hidden[:S]

    def _capture(self, ids: Tensor, layout: CacheLayout) -> Captured:
        """Record a step; the runs before it write what the step itself writes."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.model.hidden_cached(ids, self.cache, layout)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            hidden = self.model.hidden_cached(ids, self.cache, layout)
        return Captured(graph, ids, layout, hidden)


def pad(ids: Tensor, layout: CacheLayout, spare_slot: int) -> tuple[Tensor, CacheLayout]:
    """Pad a step of single tokens to powers of two; all tensors are new ones."""
    S, M = layout.tables.shape
    rows, columns = power_of_two(S) - S, power_of_two(M) - M

    def padded(values: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(values, (0, rows), value=value)

    tables = torch.nn.functional.pad(layout.tables, (0, columns, 0, rows))
    positions, slots = padded(layout.positions, 0), padded(layout.slots, spare_slot)
    return padded(ids, 0), CacheLayout(positions, slots, tables)


def power_of_two(number: int) -> int:
    """Give the least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()
