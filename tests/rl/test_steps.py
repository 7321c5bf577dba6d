"""Step after step of rollouts: which questions, by whose weights, and that they teach."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch

from nanoray.data.batches import StepRows
from nanoray.inference.engine import EngineConfig
from nanoray.rl.pass_rate import PassRate
from nanoray.rl.rollout import RolloutConfig
from nanoray.rl.source import LocalRollouts, RolloutSource
from nanoray.rl.steps import QuestionPlan, rollout_steps
from nanoray.task import Example, Grade
from nanoray.train.optimizer import MuonAdamW, OptimizerConfig
from nanoray.train.schedule import Schedule
from nanoray.train.state import TrainState
from nanoray.train.step import StepConfig, train_step
from nanoray.train.world import LocalWorld
from tests.support import tiny_gpt, tiny_tokenizer
from tests.train.ranks import GroupWorld

WORLD = LocalWorld()
TOKENIZER = tiny_tokenizer()
PLAN = QuestionPlan(num_questions=10, seed=3, groups_per_step=4)
STEP = StepConfig(Schedule(num_steps=1000), 16, lambda position: False)


class SayE:
    """Every question asks for an answer with the letter e."""

    name = "e"
    baseline = 0.0
    sandbox: str | None = None

    def __len__(self) -> int:
        return 10

    def example(self, index: int) -> Example:
        turns = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "e"})
        return Example(turns)

    def grade(self, index: int, answer: str) -> Grade:
        return Grade("e" in answer)


def source() -> RolloutSource:
    config = RolloutConfig(num_samples=8, max_new_tokens=4, top_k=None)
    return RolloutSource(
        model=state_of_seed().model.config,
        compute_dtype="float32",
        tokenizer=TOKENIZER.to_json(),
        task=SayE(),
        rollout=config,
        engine=EngineConfig(max_sequences=32),
        held_out=(SayE(), config),
    )


def state_of_seed() -> TrainState:
    model = tiny_gpt(vocab_size=TOKENIZER.vocab_size, max_seq_len=64)
    optimizer = OptimizerConfig(0.004, 0.04, 0.0008, newton_schulz_dtype="float32")
    return TrainState(model, MuonAdamW(model, optimizer, WORLD))


def steps_of(state: TrainState, staleness: int = 0) -> Iterator[StepRows]:
    collector = LocalRollouts(source(), torch.device("cpu"))
    return rollout_steps(
        collector, PLAN, WORLD, state, max_staleness=staleness, padding_id=TOKENIZER.bos_id
    )


def learn(state: TrainState, steps: Iterator[StepRows], count: int) -> list[dict[str, float]]:
    return [train_step(state, next(steps), STEP, WORLD).means for _ in range(count)]


def test_every_question_comes_once_in_an_epoch_and_the_next_one_has_another_order() -> None:
    first, second = ([PLAN.question(10 * epoch + i) for i in range(10)] for epoch in (0, 1))

    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_question_that_a_step_asks_again_has_other_answers() -> None:
    few = QuestionPlan(num_questions=2, seed=3, groups_per_step=5)
    numbers = [0, 2, 4]  # of one of two ranks

    questions = [few.question(number) for number in range(5)]
    repeats = few.repeats(0, range(5))
    assert sorted(zip(questions, repeats, strict=True)) in (
        [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)],
        [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)],
    )
    assert few.repeats(0, numbers) == [repeats[number] for number in numbers]
    assert PLAN.repeats(0, range(4)) == [0] * 4

    state = state_of_seed()
    collector = LocalRollouts(source(), torch.device("cpu"))
    steps = rollout_steps(
        collector, few, WORLD, state, max_staleness=0, padding_id=TOKENIZER.bos_id
    )
    digests = next(steps).record[:, 3].view(5, 8)  # (groups, samples)
    assert len({tuple(group.tolist()) for group in digests}) == 5


def test_ranks_share_the_groups_of_a_step() -> None:
    shares = [PLAN.mine(GroupWorld(rank, 3)) for rank in range(3)]

    assert sorted(itertools.chain(*shares)) == [0, 1, 2, 3]


def test_rollouts_teach_what_is_rewarded() -> None:
    state = state_of_seed()
    measure = PassRate(
        LocalRollouts(source(), torch.device("cpu")), WORLD, num_questions=10, num_samples=8
    )
    before = measure.measure(state.model)

    learn(state, steps_of(state), 25)

    after = measure.measure(state.model)
    assert after["validation/pass_at_1"] > before["validation/pass_at_1"] + 0.2
    assert after["validation/pass_at_8"] >= after["validation/pass_at_1"]


def test_a_run_that_goes_on_draws_what_the_undisturbed_one_draws() -> None:
    whole, resumed = state_of_seed(), state_of_seed()

    expected = learn(whole, steps_of(whole), 4)
    found = learn(resumed, steps_of(resumed), 2)
    found += learn(resumed, steps_of(resumed), 2)  # other engines, from step 2 on

    assert found == expected
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name))


def test_with_staleness_answers_are_drawn_ahead_by_older_weights() -> None:
    state = state_of_seed()

    told = learn(state, steps_of(state, staleness=2), 5)

    assert [means["rl/staleness_steps"] for means in told] == [0.0, 1.0, 2.0, 2.0, 2.0]


def test_answers_that_are_all_alike_leave_the_weights_as_they_are() -> None:
    state = state_of_seed()
    steps = steps_of(state)
    learn(state, steps, 2)  # there is momentum now
    rows = next(steps)
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    assert rows.factors is not None

    zeros = torch.zeros_like(rows.factors)
    # If they went through the model, these log-probabilities would make all of it NaN.
    alike = replace(rows, factors=zeros, old_logprobs=torch.full_like(zeros, torch.nan))
    result = train_step(state, alike, STEP, WORLD)

    assert (result.loss, result.grad_norm) == (0.0, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    assert state.step == 3
