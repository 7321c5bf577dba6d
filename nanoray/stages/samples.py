"""What a model says when a stage ends: texts that it goes on with, or answers to questions."""

import logging
import time
from collections.abc import Sequence

import torch

from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sampling import SamplingParams
from nanoray.model.generate import generate
from nanoray.model.gpt import GPT
from nanoray.text.chat import render_for_completion
from nanoray.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Samples = list[tuple[str, str]]
"""Prompts, each with what followed."""

TEMPERATURE, TOP_K = 0.7, 50


def continue_texts(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int
) -> Samples:
    """Let a base model go on with each prompt.

    Prompts that leave no room in the context are left out.
    """
    began = time.monotonic()
    samples = []
    for seed, prompt in enumerate(prompts):
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        room = min(num_tokens, model.cos.size(0) - len(ids) + 1)  # the last token is never read
        if room < 1:
            logger.warning("left out the sample %r: the context has no room for it", prompt)
            continue
        new = generate(model, ids, room, temperature=TEMPERATURE, top_k=TOP_K, seed=seed)
        samples.append((prompt, tokenizer.decode(new)))
    logger.info("sampled %d texts in %.1f s", len(samples), time.monotonic() - began)
    return samples


def answer_questions(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], num_tokens: int
) -> Samples:
    """Let an assistant answer each prompt, the likeliest token by token, its tool at hand.

    Prompts that leave no room in the context are left out.
    """
    copy = GPT(model.config, model.compute_dtype).to(model.unembedding.weight.device)
    with torch.no_grad():
        copy.load_state_dict(model.state_dict())
    engine = Engine(copy, tokenizer, EngineConfig(max_sequences=max(1, len(prompts))))
    asked, answers = list[str](), dict[int, list[int]]()
    for prompt in prompts:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": ""}]
        ids = render_for_completion(turns, tokenizer)
        room = min(num_tokens, engine.context_tokens - len(ids))
        if room < 1:
            logger.warning("left out the sample %r: the context has no room for it", prompt)
            continue
        request = engine.add(ids, SamplingParams(max_tokens=room, temperature=0, tools=True))
        asked.append(prompt)
        answers[request] = []
    while engine.has_work:
        for output in engine.step():
            if output.token not in engine.eos_ids:
                answers[output.request].append(output.token)
    said = [tokenizer.decode(tokens) for tokens in answers.values()]
    return list(zip(asked, said, strict=True))
