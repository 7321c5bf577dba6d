"""Bits per byte on held-out rows: comparable between tokenizers, on any number of ranks."""

import math
from typing import Protocol

import numpy as np
import torch

from nanoray.data.batches import batch_of
from nanoray.data.packing import Tokens
from nanoray.model.gpt import GPT
from nanoray.text.chat import IGNORE_INDEX
from nanoray.train.world import World, all_reduce_sum


class Validation(Protocol):
    """What a stage is measured by while it trains; every rank takes part."""

    key: str
    """The most important of its values, in metrics.jsonl."""

    def measure(self, model: GPT) -> dict[str, float]:
        """Give the values by their names in metrics.jsonl, the same on every rank."""
        ...


class BitsPerByte:
    """A fixed set of rows, this rank's share of them held ready."""

    def __init__(
        self,
        rows: Tokens,
        token_lengths: Tokens,
        world: World,
        device_batch_size: int,
        text_start: int | None = None,
    ) -> None:
        """Take this rank's share of all rows, (num_rows, T+1).

        Args:
            rows: the same on every rank.
            token_lengths: raw bytes of each token, (V,); 0 for special tokens, which are left out.
            world: rank r takes the rows r, r + W, ...
            device_batch_size: rows per forward pass.
            text_start: as in `StepConfig`.
        """
        self.world, self.text_start = world, text_start
        mine = rows[world.rank :: world.world_size]
        padding = -len(mine) % device_batch_size if len(mine) else device_batch_size
        # Padded to whole batches, because another shape would be compiled for itself.
        padded = np.pad(mine, ((0, padding), (0, 0)), constant_values=~0)
        self.rows = torch.from_numpy(padded).split(device_batch_size)
        self.token_lengths = torch.from_numpy(token_lengths).to(world.device)

    key = "validation/bits_per_byte"

    def measure(self, model: GPT) -> dict[str, float]:
        """Give the bits per byte."""
        return {self.key: self.bits_per_byte(model)}

    def bits_per_byte(self, model: GPT) -> float:
        """Compute nats / (ln 2 * bytes) over all targets that stand for bytes (nanochat 5.1)."""
        totals = torch.zeros(2, dtype=torch.float64, device=self.world.device)  # nats, bytes
        for rows in self.rows:
            batch = batch_of(rows.to(self.world.device), self.text_start)
            wanted = batch.targets
            losses = model.token_losses(batch.inputs, wanted, texts=batch.texts)
            num_bytes = torch.where(
                wanted != IGNORE_INDEX, self.token_lengths[wanted.clamp(min=0)], 0
            )
            totals[0] += losses[num_bytes > 0].double().sum()
            totals[1] += num_bytes.sum()
            self.world.beat("validation")
        nats, num_bytes_total = all_reduce_sum(totals).tolist()
        return nats / (math.log(2) * num_bytes_total) if num_bytes_total else math.inf
