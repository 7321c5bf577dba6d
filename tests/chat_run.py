"""A run whose tiny model has learned a few conversations by heart: its answers are known."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from nanoray.model.gpt import GPT
from nanoray.storage import RunFolder, StageFolder
from nanoray.text.chat import IGNORE_INDEX, render
from nanoray.text.tokenizer import Tokenizer
from tests.saved_model import save_model
from tests.support import tiny_config, tiny_tokenizer

CONTEXT = 256
STEPS = 220

WEATHER = "The sky is blue, and grass is green."
EMOJI = "漢字 and 🙂👩‍👩‍👧 say Grüße!"
COUNTING = "one two three four five six seven eight nine ten " * 3
TOOL_PARTS = [
    {"type": "text", "text": "Let me see. "},
    {"type": "python", "text": "12*(3+4)"},
    {"type": "python_output", "text": "84"},
    {"type": "text", "text": "It is 84."},
]
HOSTILE = 'See <img src=x onerror="window.hacked=1"> and [a](javascript:alert(1)) here'
ANSWERS: dict[str, Any] = {
    "What color is the sky?": WEATHER,
    "Show me emoji": EMOJI,
    "Count": COUNTING,
    "What is 12*(3+4)?": TOOL_PARTS,
    "Show me HTML": HOSTILE,
}
"""Question -> answer, learned by heart."""


def tokenizer() -> Tokenizer:
    """Give the tokenizer of the run."""
    return tiny_tokenizer(247)


@cache
def trained_weights() -> dict[str, torch.Tensor]:
    """Train the model until it knows every answer; some ten seconds on one core."""
    model = build()
    rows = []
    for question, answer in ANSWERS.items():
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
        rows.append(render(messages, tokenizer(), CONTEXT + 1))
    T = max(len(ids) for ids, _ in rows) - 1
    inputs = torch.full((len(rows), T), tokenizer().bos_id)
    targets = torch.full((len(rows), T), IGNORE_INDEX)
    for row, (ids, mask) in enumerate(rows):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        learned = [
            token if learn else IGNORE_INDEX for token, learn in zip(ids[1:], mask[1:], strict=True)
        ]
        targets[row, : len(ids) - 1] = torch.tensor(learned)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10, (STEPS - step) / 60)
        loss = model.loss_sum(inputs, targets) / (targets != IGNORE_INDEX).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, f"it has not learned its answers: {loss.item()}"
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def build() -> GPT:
    """Build the model, untrained."""
    model = GPT(tiny_config(max_seq_len=CONTEXT, vocab_size=tokenizer().vocab_size))
    model.init_weights(seed=0)
    return model


def chat_model(*, forgetful: bool = False) -> GPT:
    """Give the trained model.

    A forgetful one says the next id for each that it has learned to say: it knows no answer.
    """
    model = build()
    model.load_state_dict(trained_weights())
    if forgetful:
        with torch.no_grad():
            model.unembedding.weight.copy_(model.unembedding.weight.roll(1, 0))
    return model


def save_chat_run(
    storage: Path, run: str = "chat", steps: tuple[int, ...] = (10,), *, forgetful: bool = False
) -> StageFolder:
    """Write the model as a finished stage of a run, with one checkpoint per step."""
    model = chat_model(forgetful=forgetful)
    return save_model(RunFolder(str(storage), run).stage("sft"), model, tokenizer(), steps)
