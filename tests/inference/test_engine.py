"""The engine against `generate`, which computes everything anew for each token, in fp32."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from nanoray.config import InputError
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.model.generate import generate
from nanoray.model.gpt import GPT
from nanoray.text.tokenizer import Tokenizer
from tests.support import tiny_gpt, tiny_tokenizer

NUM_TOKENS = 10
BLOCK = 4
LENGTHS = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1, 30, 53]
"""Around the borders of blocks, and up to the last that leaves room for NUM_TOKENS in 64."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer(247)


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_gpt(num_kv_heads=1)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """64 prompts; every third begins like the one before it, so that blocks can be shared."""
    rng = random.Random(0)
    made: list[list[int]] = []
    for index in range(64):
        length = LENGTHS[index % len(LENGTHS)]
        prompt = [rng.randrange(500) for _ in range(length)]
        if index % 3 == 2:
            shared = made[-1][: rng.randrange(length + 1)]
            prompt[: len(shared)] = shared
        made.append(prompt)
    return made


@pytest.fixture(scope="module")
def expected(model: GPT, prompts: list[list[int]]) -> list[list[int]]:
    return [generate(model, prompt, NUM_TOKENS, temperature=0) for prompt in prompts]


def make_engine(model: GPT, tokenizer: Tokenizer, **fields: int) -> Engine:
    """Build an engine whose freed blocks hold NaN, so that no one can read them unnoticed."""
    engine = Engine(model, tokenizer, EngineConfig(**{"block_size": BLOCK, **fields}))
    release = engine.blocks.release

    def poison(table) -> None:
        before = set(engine.blocks.unused)
        release(table)
        unshared = set(engine.blocks.unused) - before - set(engine.blocks.digest_of)
        engine.runner.cache.pool[:, :, list(unshared)] = torch.nan

    engine.blocks.release = poison  # type: ignore[method-assign]
    return engine


def greedy(max_tokens: int = NUM_TOKENS, **fields) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, **fields)


def run(
    engine: Engine, meanwhile: Callable[[list[TokenOutput]], object] = lambda _: None
) -> dict[tuple[int, int], list[int]]:
    """Step to the end, and give the tokens of each sample of each request."""
    tokens: dict[tuple[int, int], list[int]] = defaultdict(list)
    while engine.has_work:
        outputs = engine.step()
        for output in outputs:
            tokens[output.request, output.sample].append(output.token)
        meanwhile(outputs)
    return tokens


def gather(engine: Engine, given: dict[int, list[int]]) -> None:
    """Do one step, and add the tokens of each request to the others of it."""
    for output in engine.step():
        given[output.request].append(output.token)


def check_empty(engine: Engine) -> None:
    """Assert that no sequence holds anything any more."""
    assert (engine.num_running, engine.num_waiting, engine.has_work) == (0, 0, False)
    assert engine.blocks.usage == 0
    assert set(engine.blocks.users) == {0}


def test_prompts_one_by_one_give_the_tokens_of_full_forward_passes(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], expected: list[list[int]]
):
    engine = make_engine(model, tokenizer)

    given = []
    for prompt in prompts:
        request = engine.add(prompt, greedy())
        given.append(run(engine)[request, 0])

    assert given == expected
    check_empty(engine)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"step_tokens": 9, "max_sequences": 7},
        {"num_blocks": 18, "step_tokens": 40},
        {"block_size": 1, "num_blocks": 70},
        {"block_size": 64},
    ],
    ids=["all at once", "chunked", "preempted", "blocks of one", "one block each"],
)
def test_prompts_among_others_give_the_tokens_that_they_give_alone(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    expected: list[list[int]],
    fields: dict[str, int],
):
    engine = make_engine(model, tokenizer, **fields)
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    requests: dict[int, int] = {}
    arrivals: Iterator[int] = iter(order)

    def arrive(outputs: list[TokenOutput]) -> None:
        for index in [next(arrivals, None), next(arrivals, None)]:
            if index is not None:
                requests[engine.add(prompts[index], greedy())] = index

    arrive([])
    given = run(engine, arrive)

    assert {requests[request]: tokens for (request, _), tokens in given.items()} == dict(
        enumerate(expected)
    )
    assert (engine.scheduler.num_preemptions > 0) == ("num_blocks" in fields)
    check_empty(engine)


def test_in_bf16_another_token_comes_only_where_rounding_decides(tokenizer: Tokenizer):
    """32 mixed requests against a full forward pass over what the engine wrote."""
    model = tiny_gpt(torch.bfloat16, num_kv_heads=1)
    rng = random.Random(3)
    prompts = [[rng.randrange(500) for _ in range(rng.choice(LENGTHS))] for _ in range(32)]
    engine = make_engine(model, tokenizer, step_tokens=40, max_sequences=9)
    requests = {engine.add(prompt, greedy()): prompt for prompt in prompts}

    tokens = run(engine)

    gaps = []
    for request, prompt in requests.items():
        ids, written = torch.tensor([prompt + tokens[request, 0]]), tokens[request, 0]
        with torch.no_grad():
            logits = model(ids)[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(written)[:, None])[:, 0]
        gaps.append((logits.max(1).values - chosen) / logits.abs().max(1).values)
    relative = torch.cat(gaps)

    assert relative.max() < 4 * torch.finfo(torch.bfloat16).eps
    assert (relative == 0).float().mean() > 0.9


def test_aborting_a_request_at_any_step_changes_no_other(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], expected: list[list[int]]
):
    for step in range(1, 16):
        engine = make_engine(model, tokenizer, num_blocks=40, step_tokens=32)
        aborted = [engine.add(prompts[index], greedy()) for index in (8, 1, 9)]
        kept = {engine.add(prompts[index], greedy()): index for index in (18, 7, 19, 28)}
        given: dict[int, list[int]] = defaultdict(list)

        for _ in range(step):
            gather(engine, given)
        for request in aborted:
            engine.abort(request)
        while engine.has_work:
            gather(engine, given)

        assert {i: given[request] for request, i in kept.items()} == {
            i: expected[i] for i in kept.values()
        }
        check_empty(engine)


def test_a_prompt_that_was_computed_before_is_taken_from_the_cache(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]], expected: list[list[int]]
):
    engine = make_engine(model, tokenizer)
    found: list[int] = []

    for _ in range(2):
        engine.add(prompts[8], greedy())
        run(engine, lambda outputs: found.extend(o.cached_tokens for o in outputs))

    # 30 tokens are seven full blocks.
    assert (found[0], found[NUM_TOKENS]) == (0, 28)


def test_samples_of_one_prompt_share_its_blocks_and_equal_requests_of_their_own(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]]
):
    engine = make_engine(model, tokenizer)
    params: dict[str, Any] = {"max_tokens": 6, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    cached: list[int] = []

    def first_tokens(outputs: list[TokenOutput]) -> None:
        cached.extend(output.cached_tokens for output in outputs)

    request = engine.add(prompts[8], SamplingParams(num_samples=4, **params))
    together = run(engine, first_tokens)
    alone = make_engine(model, tokenizer)
    other = alone.add(prompts[8], SamplingParams(num_samples=1, **params))

    assert run(alone)[other, 0] == together[request, 0]
    assert len({tuple(together[request, sample]) for sample in range(4)}) == 4
    assert cached.count(28) == 3
    check_empty(engine)


def test_a_seed_decides_the_draws_whoever_else_is_there_and_whatever_is_preempted(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]]
):
    params = SamplingParams(max_tokens=20, temperature=0.9, top_k=40, top_p=0.95, seed=7)
    alone = make_engine(model, tokenizer)
    request = alone.add(prompts[7], params)
    expected = run(alone)[request, 0]

    crowded = make_engine(model, tokenizer, num_blocks=18, step_tokens=33)
    others = [crowded.add(prompt, greedy()) for prompt in prompts[:12]]
    request = crowded.add(prompts[7], params)
    others += [crowded.add(prompt, greedy()) for prompt in prompts[12:20]]
    given = run(crowded)

    assert given[request, 0] == expected
    assert crowded.scheduler.num_preemptions > 0


def test_the_context_ends_a_continuation(model: GPT, tokenizer: Tokenizer):
    engine = make_engine(model, tokenizer)
    outputs: list[TokenOutput] = []

    engine.add([1] * 60, greedy(max_tokens=100))
    run(engine, outputs.extend)

    assert len(outputs) == 4
    assert outputs[-1].finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([], "prompt is empty"),
        ([1, 512], "Token id 512 is not in the vocabulary: ids go from 0 to 511"),
        ([-1], "Token id -1"),
        ([1] * 64, "maximum context length is 64 tokens, and the prompt has 64"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused(
    model: GPT, tokenizer: Tokenizer, prompt: list[int], said: str
):
    engine = make_engine(model, tokenizer)

    with pytest.raises(InputError, match=said):
        engine.add(prompt, greedy())

    check_empty(engine)


def test_a_cache_too_small_for_the_context_bounds_it(model: GPT, tokenizer: Tokenizer):
    engine = make_engine(model, tokenizer, num_blocks=3)
    outputs: list[TokenOutput] = []

    engine.add([1, 2, 3], greedy(max_tokens=100))
    run(engine, outputs.extend)

    assert engine.context_tokens == 8
    assert len(outputs) == 5


def test_a_context_may_be_longer_than_rows_of_training(model: GPT, tokenizer: Tokenizer):
    T = model.config.max_seq_len
    longer = make_engine(model, tokenizer, context_tokens=T + 30)
    outputs: list[TokenOutput] = []
    prompt = [index % 200 for index in range(T - 5)]

    longer.add(prompt, greedy(max_tokens=100))
    run(longer, outputs.extend)

    assert [o.token for o in outputs] == generate(model, prompt, 35, temperature=0)
    with pytest.raises(InputError, match=f"context_tokens {10 * T + 1} is more than the {10 * T}"):
        make_engine(model, tokenizer, context_tokens=10 * T + 1)


def test_other_weights_continue_what_runs(tokenizer: Tokenizer, prompts: list[list[int]]):
    old, new = tiny_gpt(), tiny_gpt()
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.1).add_(0.01)
    weights = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    engine = make_engine(old, tokenizer)
    request = engine.add(prompts[8], greedy())
    before = [engine.step()[0].token for _ in range(4)]

    engine.load_weights(weights)
    after = run(engine)[request, 0]
    again = engine.add(prompts[8], greedy())

    assert after == generate(new, prompts[8] + before, NUM_TOKENS - 4, temperature=0)
    assert run(engine)[again, 0] == generate(new, prompts[8], NUM_TOKENS, temperature=0)


def test_a_model_that_overflows_ends_its_request_and_harms_no_other(
    tokenizer: Tokenizer, prompts: list[list[int]]
):
    model = tiny_gpt()
    with torch.no_grad():
        model.embedding.weight[499] = torch.nan
    healthy = generate(model, [1, 2, 3], NUM_TOKENS, temperature=0)
    engine = make_engine(model, tokenizer)
    outputs: list[TokenOutput] = []

    sick = engine.add([499] * 6, greedy())
    run(engine, outputs.extend)
    well = engine.add([1, 2, 3], greedy())
    given = run(engine)

    assert [o.finish_reason for o in outputs if o.request == sick] == [FinishReason.ERROR]
    assert given[well, 0] == healthy


def test_log_probabilities_of_a_mixed_batch_are_those_of_full_forward_passes(
    model: GPT, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    engine = make_engine(model, tokenizer)
    counts = [None, 0, 3, 0, 5, None, 3]
    requests = [
        engine.add(prompt, greedy(num_logprobs=count))
        for prompt, count in zip(prompts, counts, strict=False)
    ]
    outputs: dict[int, list[TokenOutput]] = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            outputs[output.request].append(output)

    for request, prompt, count in zip(requests, prompts, counts, strict=False):
        tokens = [output.token for output in outputs[request]]
        known = [output.logprobs for output in outputs[request]]
        if count is None:
            assert known == [None] * NUM_TOKENS
            continue
        with torch.no_grad():
            logits = model.logits(model.hidden(torch.tensor([prompt + tokens])))[0]
        expected = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        for row, token, found in zip(expected, tokens, known, strict=True):
            assert found is not None
            assert found.token == token
            assert found.logprob == pytest.approx(row[token].item(), abs=1e-5)
            assert [value for _, value in found.top] == pytest.approx(
                row.topk(count).values.tolist(), abs=1e-5
            )
            assert all(
                row[id_].item() == pytest.approx(value, abs=1e-5) for id_, value in found.top
            )
