"""Logits to ids: greedy, temperature, top-k and top-p, each row by its own settings and seed.

A draw needs one uniform number, made from (seed, sample, position) alone. So a request gets the
same tokens whoever shares its batch, after a preemption, and on every device, as far as its logits
are the same.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoray.config import InputError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is continued."""

    max_tokens: int
    """Most ids to generate; those that a tool puts in count."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Draw among this many most likely tokens; None for all."""
    top_p: float = 1.0
    """Draw among the fewest most likely tokens that together have this probability."""
    seed: int = 0
    """Together with the sample's index it decides all draws."""
    num_samples: int = 1
    """Continuations of the one prompt, each of its own."""
    stop: tuple[str, ...] = ()
    """Texts that end the continuation; they are not part of it."""
    ignore_eos: bool = False
    """Go on after the token that ends a turn."""
    min_tokens: int = 0
    """So many tokens come before one that ends the turn."""
    tools: bool = False
    """Let the model use the calculator."""
    num_logprobs: int | None = None
    """Give the log-probability of each token, and of so many most likely ones; None for neither."""
    prompt_logprobs: bool = False
    """Give them for the tokens of the prompt too."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning.

        Raises:
            InputError: a value outside of its range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        for name, least in (("max_tokens", 1), ("num_samples", 1), ("min_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}. Leave it out for all.")


def uniform(seed: int, sample: int, position: int) -> float:
    """Give a number in [0, 1) that depends on the three alone, with 53 random bits."""
    digest = hashlib.blake2b(f"{seed} {sample} {position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


def sample_tokens(logits: Tensor, params: list[SamplingParams], draws: list[float]) -> Tensor:
    """Choose one id per row, (S,) int64, by inverse transform sampling.

    What is tied with the least likely token that top-k or top-p keeps is kept too, so that no order
    among equals decides. Temperature comes after top-k and before top-p.

    Args:
        logits: (S, V) fp32.
        params: of each row.
        draws: a number in [0, 1) for each row.
    """
    chosen = logits.argmax(-1)  # (S,)
    rows = [row for row, wanted in enumerate(params) if wanted.temperature > 0]
    if not rows:
        return chosen
    drawn, wanted = logits[rows], [params[row] for row in rows]
    drawn = keep_top_k(drawn, [one.top_k for one in wanted])
    # Not below the smallest normal number: dividing by less gives infinities, whose softmax is NaN.
    temperature = torch.tensor([max(one.temperature, 1e-4) for one in wanted])
    top = drawn.amax(-1, keepdim=True)
    probabilities = ((drawn - top) / temperature.to(logits.device)[:, None]).softmax(-1)  # (R, V)
    probabilities = keep_top_p(probabilities, [one.top_p for one in wanted])
    # Cumulated in fp64: in fp32 the last of 65,536 sums may end below a draw that is close to 1.
    below = probabilities.double().cumsum(-1)  # (R, V)
    target = torch.tensor([draws[row] for row in rows], dtype=torch.float64, device=logits.device)
    chosen[rows] = torch.searchsorted(below, target[:, None] * below[:, -1:], right=True)[:, 0]
    return chosen


def keep_top_k(logits: Tensor, top_k: list[int | None]) -> Tensor:
    """Make logits that are below their row's k-th largest -inf; (R, V), and k of each row."""
    V = logits.size(-1)
    widths = [V if k is None else min(k, V) for k in top_k]
    limited = [width for width in widths if width < V]
    if not limited:
        return logits
    largest = logits.topk(max(limited), dim=-1).values  # (R, widest), falling
    index = torch.tensor([min(width, max(limited)) - 1 for width in widths], device=logits.device)
    least = largest.gather(1, index[:, None])  # (R, 1)
    unlimited = torch.tensor([width == V for width in widths], device=logits.device)[:, None]
    return logits.masked_fill((logits < least) & ~unlimited, -torch.inf)


def keep_top_p(probabilities: Tensor, top_p: list[float]) -> Tensor:
    """Make 0 what is not among the fewest tokens that reach their row's top_p; (R, V)."""
    rows = [row for row, p in enumerate(top_p) if p < 1]
    if not rows:
        return probabilities
    limit = torch.tensor([top_p[row] for row in rows], dtype=torch.float64)
    falling = probabilities[rows].sort(-1, descending=True).values  # (R', V)
    before = falling.double().cumsum(-1) - falling  # what the more likely ones have together
    num_kept = (before < limit.to(before.device)[:, None]).sum(-1, keepdim=True)  # (R', 1)
    least = falling.gather(1, num_kept - 1)
    kept = probabilities.clone()
    kept[rows] = kept[rows].masked_fill(kept[rows] < least, 0)
    return kept
