"""How many held-out questions a policy answers: pass@k while it learns."""

import math

import torch

from nanoray.metrics import PASS_RATE, PASS_RATE_ERROR
from nanoray.model.gpt import GPT
from nanoray.rl.source import Collector
from nanoray.rl.steps import weights_of
from nanoray.rl.trajectory import pass_at_k
from nanoray.train.world import World, all_reduce_sum, wait_for_all

HELD_OUT_STEP = 0
"""Decides the draws together with the seed: the same at each measurement, so that two differ by
their weights alone."""
MEASURING = -1
"""Version of weights that are measured, and not learned from."""


class PassRate:
    """Pass@k over the first held-out questions, each rank's share of them drawn by itself."""

    key = PASS_RATE
    error_key = PASS_RATE_ERROR

    def __init__(
        self, collector: Collector, world: World, *, num_questions: int, num_samples: int
    ) -> None:
        self.collector, self.world = collector, world
        self.num_questions, self.num_samples = num_questions, num_samples

    def measure(self, model: GPT) -> dict[str, float]:
        """Give pass@1, pass@2, pass@4, ... by the unbiased estimator, the same on every rank.

        With them comes the standard error of pass@1: how far it would differ with other questions.
        """
        ks = [k for k in (2**power for power in range(10)) if k <= self.num_samples]
        mine = list(range(self.world.rank, self.num_questions, self.world.world_size))
        self.collector.publish(weights_of(model), MEASURING)
        pending = self.collector.start(
            mine, step=HELD_OUT_STEP, version=MEASURING, is_held_out=True
        )
        # The last one is the sum of the squares of pass@1.
        totals = torch.zeros(len(ks) + 1, dtype=torch.float64, device=self.world.device)
        for group in self.collector.finish(pending):
            correct = sum(trajectory.reward > 0 for trajectory in group)
            rates = [pass_at_k(len(group), correct, k) for k in ks]
            rates.append(rates[0] ** 2)
            totals += torch.tensor(rates, dtype=torch.float64, device=self.world.device)
        wait_for_all(self.world, "waiting for the validation of others")
        n = self.num_questions
        *means, mean_square = (all_reduce_sum(totals) / n).tolist()
        variance = max(0.0, mean_square - means[0] ** 2)
        measured = {f"validation/pass_at_{k}": mean for k, mean in zip(ks, means, strict=True)}
        return {**measured, self.error_key: math.sqrt(variance / max(1, n - 1))}
