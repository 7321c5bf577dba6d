"""Rollouts in this process: weights that are published, and questions that are held out."""

from dataclasses import replace

import torch

from nanoray.rl.rollout import RolloutConfig
from nanoray.rl.source import LocalRollouts
from nanoray.rl.steps import weights_of
from tests.rl.test_steps import SayE, source, state_of_seed

CPU = torch.device("cpu")


def test_answers_are_drawn_by_the_weights_that_were_published_last() -> None:
    rollouts, model = LocalRollouts(source(), CPU), state_of_seed().model
    rollouts.publish(weights_of(model), 1)
    before = rollouts.start([0, 1], step=3, version=1)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    unchanged = rollouts.start([0, 1], step=3, version=1)
    rollouts.publish(weights_of(model), 2)
    after = rollouts.start([0, 1], step=3, version=2)

    assert unchanged == before  # a copy was published
    assert [t.tokens for group in after for t in group] != [
        t.tokens for group in before for t in group
    ]


def test_held_out_questions_have_a_config_of_their_own() -> None:
    held_out = (SayE(), RolloutConfig(num_samples=2, max_new_tokens=3))
    rollouts = LocalRollouts(replace(source(), held_out=held_out), CPU)
    rollouts.publish(weights_of(state_of_seed().model), 0)

    groups = rollouts.finish(rollouts.start([4], step=0, version=0, is_held_out=True))

    assert [len(group) for group in groups] == [2]
    assert all(trajectory.num_drawn <= 3 for trajectory in groups[0])


def test_somebody_is_told_while_answers_are_drawn() -> None:
    rollouts, beats = LocalRollouts(source(), CPU), list[int]()
    rollouts.publish(weights_of(state_of_seed().model), 0)
    rollouts.on_progress = lambda: beats.append(1)

    rollouts.start([0], step=0, version=0)

    assert len(beats) >= 4
