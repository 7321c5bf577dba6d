"""Likelihoods of continuations, against whole forward passes of each text for itself."""

import random

import pytest
import torch

from nanoray.config import InputError
from nanoray.inference.scoring import Likelihood, Question, Scorer
from nanoray.model.gpt import GPT
from tests.support import tiny_gpt


def whole_pass(model: GPT, prefix: list[int], option: list[int]) -> Likelihood:
    """Score one option by a forward pass over the text with it, in float64 from the logits on."""
    with torch.no_grad():
        logits = model(torch.tensor([prefix + option]))[0].double()
    after = logits[len(prefix) - 1 : len(prefix) + len(option) - 1]
    target = torch.tensor(option, dtype=torch.int64)
    logprobs = after.log_softmax(-1).gather(1, target[:, None])[:, 0]
    return Likelihood(logprobs.tolist(), bool((after.argmax(-1) == target).all()))


def some_questions(count: int, seed: int = 0) -> list[Question]:
    """Draw questions of all shapes: options of no, one and many tokens, also equal ones."""
    rng = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [rng.randrange(512) for _ in range(rng.randint(least, most))]

    questions = []
    for _ in range(count):
        options = [ids(0, 9) for _ in range(rng.randint(1, 5))]
        questions.append(Question(ids(1, 40), [*options, options[0]]))
    return questions


@pytest.mark.parametrize("pattern", ["L", "SL"])
@pytest.mark.parametrize(("batch_size", "pass_tokens"), [(1, 8192), (32, 8192), (32, 50), (7, 1)])
def test_scores_are_those_of_a_whole_pass_over_each_text(
    batch_size: int, pass_tokens: int, pattern: str
) -> None:
    model = tiny_gpt(num_kv_heads=1, window_pattern=pattern)
    questions = some_questions(20)
    scorer = Scorer(model, batch_size=batch_size, pass_tokens=pass_tokens)

    scored = scorer.score(questions)

    for question, options in zip(questions, scored, strict=True):
        for option, found in zip(question.options, options, strict=True):
            expected = whole_pass(model, list(question.prefix), list(option))
            assert found.is_greedy == expected.is_greedy
            assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-5)  # fp32 sums


def test_a_greedy_continuation_is_seen_as_such() -> None:
    model, prefix = tiny_gpt(), [3, 1, 4]
    ids = torch.tensor([prefix])
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    written = ids[0, 3:].tolist()
    other = [*written[:-1], (written[-1] + 1) % 512]

    [[right, wrong]] = Scorer(model).score([Question(prefix, [written, other])])

    assert (right.is_greedy, wrong.is_greedy) == (True, False)


def test_numbers_of_an_earlier_pass_do_not_reach_a_later_one() -> None:
    scorer = Scorer(tiny_gpt())
    [question] = some_questions(1, seed=5)
    before = scorer.score([question])
    assert scorer._cache is not None
    with torch.inference_mode():
        scorer._cache.pool.fill_(torch.nan)

    assert scorer.score([question]) == before


def test_a_question_beyond_the_reach_of_rotary_angles_is_refused() -> None:
    scorer = Scorer(tiny_gpt(max_seq_len=8, rope_reach=2))

    assert len(scorer.score([Question([1] * 15, [[1]])])) == 1
    with pytest.raises(InputError, match="has 17 tokens, and the model can read 16"):
        scorer.score([Question([1] * 16, [[1]])])


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_the_cpu() -> None:
    questions = some_questions(20)
    here = Scorer(tiny_gpt()).score(questions)
    there = Scorer(tiny_gpt().to("cuda")).score(questions)

    for expected, found in zip(here, there, strict=True):
        for one, other in zip(expected, found, strict=True):
            assert other.logprobs == pytest.approx(one.logprobs, abs=1e-3)
