"""Rollouts of tiny models: a random one against full forward passes, and one that is scripted."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch

from nanoray.config import InputError, RunFailedError
from nanoray.inference.engine import Engine, EngineConfig
from nanoray.inference.sequence import FinishReason
from nanoray.model.gpt import GPT
from nanoray.rl.rollout import RolloutConfig, Rollouts, question_seed
from nanoray.rl.trajectory import Trajectory
from nanoray.task import Grade
from nanoray.text.chat import render_for_completion
from tests.rl.toy_task import ToyTask
from tests.support import tiny_config, tiny_gpt, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SPECIAL = TOKENIZER.special_ids
CONTEXT = 64
QUESTIONS = [3, 0, 4, 7, 1]


def random_model() -> GPT:
    return tiny_gpt(vocab_size=TOKENIZER.vocab_size)


def scripted_model(script: Sequence[int]) -> GPT:
    """Build a model that writes each token of a script after the one before it, in its place.

    No block adds anything, so the last token alone decides: each one of the script is a direction
    of its own, along which its successor's logit is close to the soft cap of 15.
    """
    assert len(set(script[:-1])) == len(script) - 1, "a token has one successor"
    model = GPT(tiny_config(vocab_size=TOKENIZER.vocab_size))
    model.init_weights(seed=0)
    with torch.no_grad():
        model.embedding.weight.zero_()
        for place, (token, following) in enumerate(itertools.pairwise(script)):
            model.embedding.weight[token, place] = 1
            model.unembedding.weight[following, place] = 10
    return model


def make_rollouts(model: GPT, *, max_sequences: int = 16, **fields) -> Rollouts:
    config = RolloutConfig(**{"num_samples": 4, "max_new_tokens": 30, **fields})
    return Rollouts(Engine(model, TOKENIZER, EngineConfig(max_sequences=max_sequences)), config)


def collect(rollouts: Rollouts, questions: Sequence[int], step: int = 1) -> list[list[Trajectory]]:
    return rollouts.collect(ToyTask(), questions, step=step, policy_version=9)


def written(trajectory: Trajectory) -> list[int]:
    """Give the tokens after the prompt."""
    messages = ToyTask().example(trajectory.question).messages
    return trajectory.tokens[len(render_for_completion(messages, TOKENIZER)) :]


@pytest.fixture(scope="module")
def groups() -> list[list[Trajectory]]:
    return collect(make_rollouts(random_model(), num_samples=32, top_k=None), QUESTIONS)


def test_groups_come_in_the_order_of_the_questions(groups: list[list[Trajectory]]) -> None:
    assert [[t.question for t in group] for group in groups] == [[q] * 32 for q in QUESTIONS]
    assert [[t.sample for t in group] for group in groups] == [list(range(32))] * 5
    assert {t.policy_version for group in groups for t in group} == {9}


def test_the_samples_of_a_group_begin_differently(groups: list[list[Trajectory]]) -> None:
    for group in groups:
        assert len({written(t)[0] for t in group}) > 8


def test_what_the_model_drew_is_masked_in_and_the_prompt_out(
    groups: list[list[Trajectory]],
) -> None:
    for trajectory in (t for group in groups for t in group):
        messages = ToyTask().example(trajectory.question).messages
        prompt = render_for_completion(messages, TOKENIZER)
        assert trajectory.tokens[: len(prompt)] == prompt
        assert trajectory.loss_mask[: len(prompt)] == [0] * len(prompt)
        assert trajectory.num_drawn == len(trajectory.tokens) - len(prompt) <= 30


def test_a_model_that_ends_its_turn_is_seen_to_do_so(groups: list[list[Trajectory]]) -> None:
    everything = [t for group in groups for t in group]
    stopped = [t for t in everything if t.finish_reason is FinishReason.STOP]

    assert any(t.tokens[-1] == SPECIAL["<|assistant_end|>"] for t in stopped)
    for trajectory in stopped:
        assert trajectory.tokens[-1] in (SPECIAL["<|assistant_end|>"], TOKENIZER.bos_id)
        assert trajectory.loss_mask[-1] == 1
        assert trajectory.logprobs[-1] < 0
        assert trajectory.text == TOKENIZER.decode(written(trajectory)[:-1])


def test_logprobs_are_those_of_a_full_forward_pass(groups: list[list[Trajectory]]) -> None:
    """The tolerance: sums over a cache are added up in another order, in fp32."""
    model = random_model()
    for trajectory in (t for group in groups for t in group[:8]):
        ids = torch.tensor([trajectory.tokens])
        with torch.no_grad():
            expected = model(ids[:, :-1])[0].double().log_softmax(-1)
        own = expected.gather(1, ids[0, 1:, None])[:, 0]
        drawn = torch.tensor(trajectory.loss_mask[1:])
        found = torch.tensor(trajectory.logprobs[1:], dtype=torch.float64)
        torch.testing.assert_close(found, own * drawn, rtol=0, atol=2e-5)


def test_logprobs_know_neither_temperature_nor_top_k() -> None:
    """With one token to choose from, its chance is not 1 but what the model gave it."""
    [[trajectory]] = collect(make_rollouts(random_model(), num_samples=1, top_k=1), [0])

    drawn = [p for p, mask in zip(trajectory.logprobs, trajectory.loss_mask, strict=True) if mask]
    assert max(drawn) < -0.01


def test_rewards_are_what_the_task_says_of_the_text(groups: list[list[Trajectory]]) -> None:
    everything = [t for group in groups for t in group]

    assert {t.reward for t in everything} == {0.0, 1.0}
    assert all(t.reward == float(len(t.text) % 2 == 0) for t in everything)


def test_a_question_is_answered_alike_alone_and_in_any_mix() -> None:
    """The draws are the same; logits differ in the last bits with the shape of the batch."""
    together = collect(make_rollouts(random_model()), QUESTIONS)
    narrow = collect(make_rollouts(random_model(), max_sequences=3), QUESTIONS[::-1])[::-1]
    rollouts = make_rollouts(random_model())
    alone = [collect(rollouts, [question])[0] for question in QUESTIONS]

    for other in (narrow, alone):
        pairs = zip(*(itertools.chain(*each) for each in (together, other)), strict=True)
        for mine, theirs in pairs:
            assert mine.tokens == theirs.tokens
            assert (mine.reward, mine.text) == (theirs.reward, theirs.text)
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)


def test_the_same_call_gives_the_same_bits_whatever_came_before() -> None:
    fresh, used = make_rollouts(random_model()), make_rollouts(random_model())
    collect(used, [7, 3], step=5)
    collect(used, QUESTIONS, step=6)

    assert collect(used, QUESTIONS) == collect(fresh, QUESTIONS)


def test_seeds_step_and_question_each_change_the_draws() -> None:
    rollouts = make_rollouts(random_model())
    other_seed = make_rollouts(random_model(), seed=1)

    first = [written(t) for t in collect(rollouts, [0])[0]]

    assert first != [written(t) for t in collect(rollouts, [0], step=2)[0]]
    assert first != [written(t) for t in collect(other_seed, [0])[0]]
    assert len({question_seed(*t) for t in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}) == 4
    assert question_seed(0, 1, 11) != question_seed(0, 11, 1)


def test_a_question_that_is_asked_again_in_a_step_is_drawn_anew() -> None:
    rollouts = make_rollouts(random_model())

    first, again = rollouts.collect(ToyTask(), [0, 0], step=1, policy_version=9, repeats=[0, 1])

    [alone] = collect(rollouts, [0])
    assert [written(t) for t in first] == [written(t) for t in alone]
    assert [written(t) for t in first] != [written(t) for t in again]


TOOL_SCRIPT = [
    SPECIAL["<|assistant_start|>"],
    *(ord("A"), SPECIAL["<|python_start|>"], ord("3"), ord("*"), ord("4")),
    SPECIAL["<|python_end|>"],
]
AFTER_TOOL = [SPECIAL["<|output_end|>"], ord("B"), SPECIAL["<|assistant_end|>"]]


def tool_model() -> GPT:
    """Build a model that asks for 3*4, and after the answer writes B and ends its turn."""
    result = TOKENIZER.encode("12")
    model = scripted_model([*TOOL_SCRIPT, SPECIAL["<|output_start|>"], *result, *AFTER_TOOL])
    with torch.no_grad():  # left to itself it would write C there, and not what the tool puts in
        place = len(TOOL_SCRIPT) - 1
        model.unembedding.weight[:, place] = 0
        model.unembedding.weight[ord("C"), place] = 10
    return model


def test_what_a_tool_puts_in_is_in_the_trajectory_but_not_to_be_learned() -> None:
    class Seen(ToyTask):
        def grade(self, index: int, answer: str) -> Grade:
            assert answer == expected_text
            return Grade(True)

    forced = [SPECIAL["<|output_start|>"], *TOKENIZER.encode("12"), SPECIAL["<|output_end|>"]]
    expected_text = "A<|python_start|>3*4<|python_end|><|output_start|>12<|output_end|>B"
    rollouts = make_rollouts(tool_model(), top_k=1, num_samples=2)

    [group] = rollouts.collect(Seen(), [0], step=0, policy_version=0)

    for trajectory in group:
        tokens = [*TOOL_SCRIPT[1:], *forced, *AFTER_TOOL[1:]]
        mask = [1] * 6 + [0] * len(forced) + [1] * 2
        num_prompt = len(trajectory.tokens) - len(tokens)
        assert trajectory.tokens[num_prompt:] == tokens
        assert trajectory.loss_mask == [0] * num_prompt + mask
        assert [p < 0 for p in trajectory.logprobs] == [False] * num_prompt + list(map(bool, mask))
        assert (trajectory.text, trajectory.reward) == (expected_text, 1.0)
        assert trajectory.finish_reason is FinishReason.STOP


def test_an_answer_may_be_cut_within_what_a_tool_puts_in() -> None:
    rollouts = make_rollouts(tool_model(), top_k=1, num_samples=1, max_new_tokens=7)

    [[trajectory]] = collect(rollouts, [0])

    assert trajectory.loss_mask[-2:] == [1, 0]
    assert trajectory.tokens[-1] == SPECIAL["<|output_start|>"]
    assert trajectory.finish_reason is FinishReason.LENGTH


def test_other_weights_give_other_answers_and_a_new_version() -> None:
    rollouts = make_rollouts(random_model(), top_k=1)
    weights = {k: v.clone() for k, v in tool_model().state_dict().items()}
    before = collect(rollouts, [0])[0][0]

    rollouts.load(weights, 10)
    [group] = rollouts.collect(ToyTask(), [0], step=1, policy_version=10)

    assert before.text != group[0].text
    assert group[0].text.startswith("A<|python_start|>3*4")
    assert {t.policy_version for t in group} == {10}
    with pytest.raises(ValueError, match="Version 9 was asked for, 10 is loaded"):
        collect(rollouts, [0])


def test_the_longest_answers_fill_the_context(groups: list[list[Trajectory]]) -> None:
    rollouts = make_rollouts(random_model(), max_new_tokens=1000)

    lengths = [len(t.tokens) for group in collect(rollouts, QUESTIONS) for t in group]

    assert max(lengths) == CONTEXT


def test_a_question_that_leaves_no_room_is_named() -> None:
    rollouts = make_rollouts(random_model())

    with pytest.raises(InputError, match="Question 5 of toy has at least 65 tokens"):
        collect(rollouts, [0, 5])

    assert len(collect(rollouts, [0])) == 1, "nothing was left in the engine"


def test_weights_that_give_no_numbers_end_the_run() -> None:
    model = random_model()
    with torch.no_grad():
        model.unembedding.weight[3] = math.nan

    with pytest.raises(RunFailedError, match="version 9 gave no finite numbers for question 0"):
        collect(make_rollouts(model), [0])


@pytest.mark.parametrize(
    "fields",
    [
        {"num_samples": 0},
        {"max_new_tokens": 0},
        {"top_k": 0},
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"temperature": 0.0, "num_samples": 2},
    ],
)
def test_values_without_a_meaning_are_refused(fields) -> None:
    with pytest.raises(InputError):
        RolloutConfig(**fields)


def test_one_greedy_answer_is_allowed() -> None:
    [[first]] = collect(make_rollouts(random_model(), num_samples=1, temperature=0.0), [0])
    [[other]] = collect(make_rollouts(random_model(), num_samples=1, temperature=0.0, seed=5), [0])

    assert first.tokens == other.tokens
