import pytest
import torch
from torch import Tensor

from nanoray.model.generate import generate, sample
from nanoray.model.gpt import GPT
from tests.support import tiny_gpt

PROMPT = [5, 17, 400, 3]


@pytest.fixture(scope="module")
def model() -> GPT:
    return tiny_gpt()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(*values: float) -> Tensor:
    return torch.tensor(values)


def draws(logits: Tensor, temperature: float, top_k: int | None, count: int = 2000) -> list[int]:
    source = generator()
    return [int(sample(logits, temperature, top_k, source)) for _ in range(count)]


def test_temperature_zero_takes_the_most_likely_token_of_a_full_forward_pass(model: GPT) -> None:
    ids = list(PROMPT)
    for _ in range(10):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))

    continuation = generate(model, PROMPT, 10, temperature=0)

    assert continuation == ids[len(PROMPT) :]


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, None), (1.3, 5), (1.0, 1)])
def test_sampling_equals_full_forward_passes_step_by_step(
    model: GPT, temperature: float, top_k: int | None
) -> None:
    ids, source = list(PROMPT), generator(42)
    for _ in range(10):
        logits = model(torch.tensor([ids]))[0, -1].detach()
        if top_k is not None:
            least = sorted(logits.tolist())[-top_k]
            logits = torch.where(logits < least, -torch.inf, logits)
        shares = torch.softmax(logits / temperature, dim=-1)
        ids.append(int(torch.multinomial(shares, 1, generator=source)))

    continuation = generate(model, PROMPT, 10, temperature=temperature, top_k=top_k, seed=42)

    assert continuation == ids[len(PROMPT) :]


def test_a_seed_decides_the_draws_whatever_was_drawn_before(model: GPT) -> None:
    first = generate(model, PROMPT, 20, seed=1)
    torch.rand(100)

    again, other = generate(model, PROMPT, 20, seed=1), generate(model, PROMPT, 20, seed=2)

    assert first == again
    assert first != other


def test_generating_leaves_the_draws_of_others_alone(model: GPT) -> None:
    before = torch.get_rng_state()

    generate(model, PROMPT, 5)

    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_is_temperature_1_all_tokens_and_seed_42(model: GPT) -> None:
    default = generate(model, PROMPT, 20)

    told = generate(model, PROMPT, 20, temperature=1.0, top_k=None, seed=42)

    assert default == told


def test_nothing_stops_a_continuation_before_its_length(model: GPT) -> None:
    lengths = [len(generate(model, PROMPT, count)) for count in (0, 1, 70)]

    assert lengths == [0, 1, 70]  # 74 tokens are more than the 64 of training


def test_only_the_k_most_likely_are_drawn() -> None:
    logits = logits_of(1.0, 3.0, 2.0, 0.0, 2.5)

    drawn = set(draws(logits, temperature=100.0, top_k=3))

    assert drawn == {1, 2, 4}


def test_tokens_as_likely_as_the_kth_are_drawn_too() -> None:
    logits = logits_of(3.0, 2.0, 2.0, 2.0, 0.0)

    drawn = set(draws(logits, temperature=1.0, top_k=2))

    assert drawn == {0, 1, 2, 3}


def test_the_threshold_comes_before_the_temperature() -> None:
    # Divided by 1e38 first, all logits would be 0 in fp32, and none below the threshold.
    logits = logits_of(1e-8, 2e-8, 3e-8)

    drawn = set(draws(logits, temperature=1e38, top_k=1))

    assert drawn == {2}


def test_more_than_the_vocabulary_is_the_vocabulary() -> None:
    logits = logits_of(1.0, 1.0, 1.0)

    drawn = set(draws(logits, temperature=1.0, top_k=50))

    assert drawn == {0, 1, 2}


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = logits_of(0.0, 1.0, 2.0)

    counts = torch.tensor(draws(logits, temperature=0.5, top_k=None, count=5000)).bincount()

    # 5000 draws of probability p have a deviation of sqrt(p (1 - p) / 5000) <= 0.007: 5 of these.
    shares = torch.softmax(2 * logits, dim=-1)
    torch.testing.assert_close(counts / 5000, shares, atol=0.035, rtol=0.0)


def test_temperature_zero_needs_no_threshold_and_draws_nothing() -> None:
    source = generator()
    before = source.get_state()

    drawn = sample(logits_of(1.0, 5.0, 3.0), 0, 2, source)

    assert drawn.tolist() == [1]
    assert torch.equal(source.get_state(), before)
