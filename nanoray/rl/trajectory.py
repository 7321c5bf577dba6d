"""A trajectory: one graded answer token by token; and what a group of them says of its question."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanoray.inference.sequence import FinishReason


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One answer to one question, as it was drawn; the first three lists have equal lengths."""

    tokens: list[int]
    """Prompt and answer. The token that ended the turn is there if the model drew it (nanochat
    leaves it out, and so never rewards a model for stopping)."""
    loss_mask: list[int]
    """Of each token: 1 if the model drew it, 0 for the prompt and for what a tool put in."""
    logprobs: list[float]
    """Of each token, in nats: its log-probability under the model that drew it, by the softmax over
    the whole vocabulary at temperature 1, before top-k; 0 where `loss_mask` is 0."""
    reward: float
    policy_version: int
    """Of the weights that drew it."""
    question: int
    """Index in the task."""
    sample: int
    """Index in the group of the question."""
    text: str
    """The answer as it was graded."""
    finish_reason: FinishReason

    def __post_init__(self) -> None:
        """Refuse lists of different lengths.

        Raises:
            ValueError: the lists do not belong to the same tokens.
        """
        lengths = (len(self.tokens), len(self.loss_mask), len(self.logprobs))
        if len(set(lengths)) > 1:
            raise ValueError(
                f"A trajectory has {lengths[0]} tokens, {lengths[1]} places in its loss mask and "
                f"{lengths[2]} log-probabilities. Give one of each per token."
            )

    @property
    def num_drawn(self) -> int:
        """Tokens that the model drew."""
        return sum(self.loss_mask)


def advantages(rewards: Sequence[float]) -> list[float]:
    """Give each reward of a group minus the group's mean; not divided by the deviation."""
    if not rewards:
        return []
    mean = math.fsum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimate the chance that at least one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k) of n samples with c correct ones (Chen et al. 2021, arXiv:2107.03374).
    Computed in whole numbers and rounded once.

    Raises:
        ValueError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@{k} cannot be estimated from {num_samples} samples. Draw at least k, and k >= 1."
        )
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"{num_correct} of {num_samples} samples cannot be correct.")
    groups = math.comb(num_samples, k)
    return (groups - math.comb(num_samples - num_correct, k)) / groups
