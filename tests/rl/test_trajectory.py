"""What a group of answers says of its question: against all subsets, and by hand."""

import itertools

import pytest

from nanoray.inference.sequence import FinishReason
from nanoray.rl.trajectory import Trajectory, advantages, pass_at_k


def trajectory(**fields) -> Trajectory:
    whole = {
        "tokens": [1, 2, 3],
        "loss_mask": [0, 1, 1],
        "logprobs": [0.0, -1.0, -2.0],
        "reward": 1.0,
        "policy_version": 0,
        "question": 0,
        "sample": 0,
        "text": "a",
        "finish_reason": FinishReason.STOP,
    }
    return Trajectory(**{**whole, **fields})


def test_a_trajectory_counts_the_tokens_that_were_drawn() -> None:
    assert trajectory().num_drawn == 2


@pytest.mark.parametrize("fields", [{"tokens": [1]}, {"loss_mask": [0, 1, 1, 1]}, {"logprobs": []}])
def test_lists_of_different_lengths_are_refused(fields) -> None:
    with pytest.raises(ValueError, match="one of each per token"):
        trajectory(**fields)


def test_advantages_are_measured_from_the_mean_and_not_scaled() -> None:
    assert advantages([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert advantages([4.0, 0.0]) == [2.0, -2.0]
    assert advantages([1.0] * 7) == [0.0] * 7
    assert advantages([]) == []


def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_sample() -> None:
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([index < c for index in range(n)], k))

            found = pass_at_k(n, c, k)

            assert found == sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_of_many_samples_is_exact() -> None:
    """C(5000, 2500) is no float, and 1 - (1 - 1e-17) would be 0."""
    assert pass_at_k(5000, 1, 2500) == 0.5
    assert pass_at_k(10**17, 1, 1) == 1e-17


@pytest.mark.parametrize("numbers", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_of_impossible_numbers_is_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        pass_at_k(*numbers)
