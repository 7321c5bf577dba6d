"""Trajectories as rows: the policy gradient against autograd in float64."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanoray.data.batches import SHORTEST, Batch, StepRows
from nanoray.inference.sequence import FinishReason
from nanoray.model.gpt import GPT
from nanoray.rl.batches import in_batches, rows_of_groups, signed_tokens
from nanoray.rl.trajectory import Trajectory
from nanoray.text.chat import IGNORE_INDEX
from nanoray.train.step import importance
from tests.support import tiny_gpt

V = 40
PADDING = 39


def trajectory(
    drawn: Sequence[int],
    reward: float,
    *,
    forced: Sequence[int] = (),
    version: int = 0,
    logprob: float = -1.0,
) -> Trajectory:
    """Make an answer to a prompt of three tokens; the forced ones follow the first drawn."""
    tokens = [1, 2, 3, drawn[0], *forced, *drawn[1:]]
    mask = [0, 0, 0, 1, *(0 for _ in forced), *(1 for _ in drawn[1:])]
    return Trajectory(
        tokens=tokens,
        loss_mask=mask,
        logprobs=[logprob * learned for learned in mask],
        reward=reward,
        policy_version=version,
        question=0,
        sample=0,
        text="",
        finish_reason=FinishReason.STOP,
    )


GROUPS = {
    0: [trajectory([4, 5, 6], 1.0), trajectory([7, 8], 0.0), trajectory([9], 0.0)],
    1: [trajectory([5, 6], 1.0, forced=[30, 31]), trajectory([4], 1.0), trajectory([6, 7], 0.0)],
}


def rows_of(groups: dict[int, list[Trajectory]], version: int = 0) -> StepRows:
    return rows_of_groups(
        groups, groups_per_step=2, first_position=10, padding_id=PADDING, version=version
    )


def policy() -> GPT:
    return tiny_gpt(vocab_size=V)


def gradients(model: GPT, rows: StepRows) -> dict[str, Tensor]:
    """Go backward over the rows as a training step does."""
    model.zero_grad()
    targets = 0
    for batch in rows.microbatches(4, torch.device("cpu")):
        if batch.teaches:
            model.loss_sum(batch.inputs, batch.targets, factors=batch.factors).backward()
        targets += int((batch.targets != IGNORE_INDEX).sum())
    return {name: p.grad / targets for name, p in model.named_parameters() if p.grad is not None}


def reinforce_in_float64(model: GPT, groups: dict[int, list[Trajectory]]) -> dict[str, Tensor]:
    """Give the gradient of -mean of (reward - group mean) * log p over the drawn tokens."""
    reference = policy().double()
    reference.compute_dtype = torch.float64
    reference.load_state_dict(model.state_dict())
    cap, total, count = reference.config.softcap, torch.zeros((), dtype=torch.float64), 0
    for group in groups.values():
        baseline = sum(t.reward for t in group) / len(group)
        for answer in group:
            ids = torch.tensor([answer.tokens])
            raw = F.linear(reference.hidden(ids[:, :-1])[0], reference.unembedding.weight)
            logprobs = F.log_softmax(cap * torch.tanh(raw / cap), -1)
            for place in range(1, len(answer.tokens)):
                if answer.loss_mask[place]:
                    own = logprobs[place - 1, answer.tokens[place]]
                    total = total - (answer.reward - baseline) * own
                    count += 1
    (total / count).backward()
    return {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}


def test_the_policy_gradient_is_that_of_reinforce_in_float64() -> None:
    model = policy()

    found = gradients(model, rows_of(GROUPS))

    expected = reinforce_in_float64(model, GROUPS)
    for name, gradient in expected.items():
        # fp32: relative to the largest entry, because small ones are sums of large ones.
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name].double(), gradient, atol=2e-5 * scale, rtol=0.0)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    equal = {n: [trajectory([4, 5], 1.0), trajectory([6], 1.0)] for n in (0, 1)}

    model, rows = policy(), rows_of(equal)
    batches = list(rows.microbatches(2, torch.device("cpu")))

    for batch in batches:
        model.loss_sum(batch.inputs, batch.targets, factors=batch.factors).backward()

    assert not any(batch.teaches for batch in batches)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_forced_tokens_and_the_prompt_are_no_targets_and_the_end_is_one() -> None:
    rows = rows_of(GROUPS)

    [*_, batch] = rows.microbatches(100, torch.device("cpu"))
    with_tool = batch.targets[3]
    assert with_tool[:6].tolist() == [IGNORE_INDEX, IGNORE_INDEX, 5, IGNORE_INDEX, IGNORE_INDEX, 6]
    assert (with_tool[6:] == IGNORE_INDEX).all()
    assert batch.inputs[3, :7].tolist() == [1, 2, 3, 5, 30, 31, 6]
    assert batch.inputs.shape[1] == SHORTEST


def test_each_row_has_its_place_in_the_endless_order() -> None:
    whole, second = rows_of(GROUPS), rows_of({1: GROUPS[1]})

    assert whole.record[:, :3].tolist() == [[10 + g, s, 3] for g in (0, 1) for s in range(3)]
    assert not second.record[:3].any()
    assert torch.equal(second.record[3:], whole.record[3:])


def test_what_is_told_of_a_step_are_sums_and_counts() -> None:
    means = rows_of(GROUPS, version=2).means

    assert means["rl/reward"] == (3.0, 6.0)
    assert means["rl/answer_tokens"] == (11, 6.0)
    assert means["rl/teaching_share"] == (2, 2.0)
    assert means["rl/staleness_steps"] == (12, 6.0)


def test_only_older_trajectories_keep_their_log_probabilities() -> None:
    assert rows_of(GROUPS, version=0).old_logprobs is None
    old = rows_of(GROUPS, version=1).old_logprobs
    assert old is not None
    assert old[0, :6].tolist() == [0.0, 0.0, -1.0, -1.0, -1.0, 0.0]


@pytest.mark.parametrize("most", [0.5, 1e9])
def test_importance_is_the_bounded_ratio_of_probabilities(most: float) -> None:
    model = policy()
    rows = rows_of(GROUPS, version=1)
    [batch] = rows.microbatches(100, torch.device("cpu"))

    ratio = importance(model, batch, most)

    logprobs = F.log_softmax(model(batch.inputs).double(), -1)
    own = logprobs.gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
    assert batch.old_logprobs is not None
    expected = (own - batch.old_logprobs).exp().clamp(max=most)
    learned = batch.targets != IGNORE_INDEX
    torch.testing.assert_close(
        ratio[learned].double(), expected[learned].detach(), atol=1e-5, rtol=1e-5
    )
    assert (ratio[~learned] == min(1.0, most)).all()


def test_the_sign_of_a_token_is_its_mask() -> None:
    assert signed_tokens(trajectory([4, 5], 0.0, forced=[7])).tolist() == [~1, ~2, ~3, 4, ~7, 5]


def test_batches_of_text_have_no_factors() -> None:
    batch = Batch(torch.zeros(1, 1), torch.zeros(1, 1))

    assert (batch.factors, batch.old_logprobs) == (None, None)


def test_rows_are_padded_to_whole_batches_that_teach_the_same() -> None:
    rows, model = rows_of(GROUPS, version=1), policy()

    padded = in_batches(rows, 4)

    assert (len(rows.rows), len(padded.rows)) == (6, 8)
    for values in (padded.old_logprobs, padded.factors):
        assert values is not None
        assert values.shape == (8, SHORTEST)
    found, expected = gradients(model, padded), gradients(model, rows)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_passes_are_as_long_as_their_answers_and_groups_of_equal_rewards_have_none() -> None:
    long, short = [4] * 200, [5, 6]
    groups = {
        0: [trajectory(long, 1.0), trajectory(short, 0.0), trajectory([7], 0.0)],
        1: [trajectory(long, 0.0), trajectory(short, 0.0), trajectory([8], 0.0)],
        2: [trajectory(short, 1.0), trajectory(long, 0.0), trajectory([9], 1.0)],
    }
    rows = rows_of_groups(
        groups, groups_per_step=3, first_position=0, padding_id=PADDING, version=1
    )

    arranged = in_batches(rows, 2)

    batches = list(arranged.microbatches(2, torch.device("cpu")))
    assert [b.inputs.size(1) for b in batches] == [SHORTEST, SHORTEST, 256, SHORTEST, 256]
    assert [b.teaches for b in batches] == [True, True, True, False, False]
    for batch in batches:
        assert batch.factors is not None
        assert batch.old_logprobs is not None
        assert batch.factors.shape == batch.old_logprobs.shape == batch.targets.shape
    assert torch.equal(arranged.record, rows.record)
    model = policy()
    found, expected = gradients(model, arranged), gradients(model, rows)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("longest", "T"), [(3, 64), (64, 64), (65, 128), (300, 512)])
def test_rows_have_few_lengths(longest: int, T: int) -> None:
    answer = trajectory([4] * (longest - 2), 1.0)

    rows = rows_of({0: [answer], 1: [answer]}).rows

    assert rows.shape[1] == T + 1
