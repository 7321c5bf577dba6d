"""Draws against the distribution that the definitions of temperature, top-k and top-p give."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nanoray.config import InputError
from nanoray.inference.sampling import SamplingParams, sample_tokens, uniform

NUM_DRAWS = 4_000
V = 50


def params(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 1, **fields})


def random_logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(V, generator=torch.Generator().manual_seed(seed))


def defined(logits: Tensor, wanted: SamplingParams) -> list[float]:
    """Compute the distribution in fp64, token by token, by the definitions."""
    values = logits.double().tolist()
    ranked = sorted(range(len(values)), key=lambda i: -values[i])
    ranked = ranked[: wanted.top_k or len(values)]
    weights = {i: math.exp((values[i] - values[ranked[0]]) / wanted.temperature) for i in ranked}
    total = sum(weights.values())
    kept, reached = [], 0.0
    for i in ranked:
        if reached >= wanted.top_p:
            break
        kept.append(i)
        reached += weights[i] / total
    return [weights[i] / sum(weights[j] for j in kept) if i in kept else 0.0 for i in range(V)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 5},
        {"top_k": 1},
        {"top_k": 10_000},
        {"top_p": 0.5},
        {"top_p": 1e-9},
        {"top_k": 10, "top_p": 0.8, "temperature": 1.5},
    ],
)
def test_tokens_are_drawn_as_often_as_the_definitions_say(fields: dict[str, Any]) -> None:
    wanted = params(**fields)
    logits = random_logits()

    evenly = [(i + 0.5) / NUM_DRAWS for i in range(NUM_DRAWS)]
    drawn = sample_tokens(logits.repeat(NUM_DRAWS, 1), [wanted] * NUM_DRAWS, evenly)

    shares = torch.bincount(drawn, minlength=V) / NUM_DRAWS
    # Of evenly spaced draws each token gets its probability, give or take one at each border.
    assert (shares.double() - torch.tensor(defined(logits, wanted))).abs().max() <= 2 / NUM_DRAWS


def test_each_row_has_its_own_settings() -> None:
    wanted = [
        params(temperature=0),
        params(),
        params(top_k=3),
        params(top_p=0.3),
        params(temperature=0.7, top_k=20, top_p=0.9),
    ]
    logits = torch.stack([random_logits(seed) for seed in range(len(wanted))])
    draws = [0.1, 0.3, 0.5, 0.7, 0.9]

    together = sample_tokens(logits, wanted, draws)

    alone = [
        sample_tokens(logits[row : row + 1], [wanted[row]], [draws[row]])[0]
        for row in range(len(wanted))
    ]
    assert together.tolist() == [int(token) for token in alone]


@pytest.mark.parametrize("draw", [0.0, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("fields", [{}, {"top_k": 3}, {"top_p": 0.2}, {"temperature": 1e-30}])
def test_the_outermost_draws_fall_on_tokens_that_can_be_drawn(
    fields: dict[str, Any], draw: float
) -> None:
    logits = torch.full((65_536,), -20.0)
    logits[[5, 700, 40_000]] = torch.tensor([1.0, 3.0, 2.0])

    [token] = sample_tokens(logits[None], [params(**fields)], [draw]).tolist()

    allowed = [0, 65_535] if not fields else [5, 700, 40_000]
    assert token in allowed


def test_what_is_tied_with_the_kth_is_drawn_too() -> None:
    logits = torch.tensor([1.0, 1.0, 1.0, 0.0])

    drawn = sample_tokens(logits.repeat(3, 1), [params(top_k=2)] * 3, [0.1, 0.5, 0.9])

    assert drawn.tolist() == [0, 1, 2]


def test_uniform_numbers_are_uniform_and_depend_on_each_of_the_three() -> None:
    numbers = [uniform(seed, i, j) for seed in (0, 1) for i in range(5) for j in range(1_000)]

    assert len(set(numbers)) == 10_000
    assert all(0 <= number < 1 for number in numbers)
    quarters = torch.histc(torch.tensor(numbers), 4, 0, 1)
    assert (quarters - 2_500).abs().max() < 4 * math.sqrt(10_000 * 0.25 * 0.75)
    assert uniform(-1, 0, 0) != uniform(2**80, 0, 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"temperature": -0.1}, "temperature must be 0 or more, not -0.1"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": math.nan}, "top_p"),
        ({"top_k": 0}, "top_k must be at least 1, not 0. Leave it out for all"),
        ({"num_samples": 0}, "num_samples"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
)
def test_settings_without_meaning_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        params(**fields)
