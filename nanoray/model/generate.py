"""Generation by computing everything anew for each token: slow, and plainly right.

The KV-cached engine must give the same tokens; samples of a run in training come from here too.
"""

import torch
from torch import Tensor

from nanoray.model.gpt import GPT


@torch.no_grad()
def generate(
    model: GPT,
    prompt: list[int],
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 42,
) -> list[int]:
    """Continue a prompt by `num_tokens` tokens; nothing stops it earlier.

    Args:
        model: any GPT.
        prompt: ids to continue, at least one.
        num_tokens: how many ids to add.
        temperature: 0 takes the most likely token.
        top_k: sample among this many most likely tokens; None for all.
        seed: the draws depend on it and on the logits alone.

    Returns:
        The new ids.
    """
    device = model.unembedding.weight.device
    generator = torch.Generator(device=device).manual_seed(seed)
    ids = torch.tensor([prompt], device=device)  # (1, T)
    for _ in range(num_tokens):
        hidden = model.hidden(ids)[:, -1:]
        logits = model.logits(hidden)[0, 0]  # (V,)
        ids = torch.cat([ids, sample(logits, temperature, top_k, generator)[None, :]], dim=1)
    return ids[0, len(prompt) :].tolist()


def sample(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    """Draw one id, (1,), from logits (V,)."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.numel())).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
