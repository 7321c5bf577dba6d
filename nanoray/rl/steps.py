"""Rollouts as the rows of step after step, on the policy or a few steps behind it."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from nanoray.data.batches import StepRows
from nanoray.data.plan import permutation
from nanoray.model.gpt import GPT
from nanoray.rl.batches import rows_of_groups
from nanoray.rl.source import Collector
from nanoray.train.state import TrainState
from nanoray.train.world import World


@dataclass(frozen=True)
class QuestionPlan:
    """Which question stands at which position, for ever; an epoch is a permutation of all."""

    num_questions: int
    seed: int
    groups_per_step: int

    def question(self, position: int) -> int:
        """Give the index in the task of the question at an absolute position."""
        epoch, index = divmod(position, self.num_questions)
        return int(permutation(self.seed, epoch, self.num_questions)[index])

    def repeats(self, first_position: int, numbers: Sequence[int]) -> list[int]:
        """Say how often the step that begins at a position has asked each group's question before.

        It does so at all where there are fewer questions than groups, or where an epoch ends.
        """
        asked = [self.question(first_position + n) for n in range(self.groups_per_step)]
        return [asked[:number].count(asked[number]) for number in numbers]

    def mine(self, world: World) -> list[int]:
        """Give the numbers within a step of the groups that a rank draws and learns from."""
        return list(range(world.rank, self.groups_per_step, world.world_size))


@dataclass(frozen=True)
class Started:
    """Rollouts of one step under way."""

    first_position: int
    pending: Any  # Any: what the collector gave


def rollout_steps(
    collector: Collector,
    plan: QuestionPlan,
    world: World,
    state: TrainState,
    *,
    max_staleness: int,
    padding_id: int,
) -> Iterator[StepRows]:
    """Draw the rollouts of step after step, and give each as rows.

    Asked for the next step, it publishes the weights as they are. With `max_staleness` 0 it draws
    the answers with them and waits. With more, it lets the answers to a later step be drawn while
    this one is learned from, by weights that are then so many steps old.

    A run that starts again draws what was under way anew, with the weights that it has then: only
    without staleness is it the undisturbed one to the bit.
    """
    ahead: deque[Started] = deque()
    mine, size = plan.mine(world), plan.groups_per_step
    while True:
        began = time.perf_counter()
        step, position = state.step, state.cursor.position
        collector.publish(weights_of(state.model), step)
        while len(ahead) <= max_staleness:
            later = step + len(ahead)
            first = position + len(ahead) * size
            questions = [plan.question(first + number) for number in mine]
            repeats = plan.repeats(first, mine)
            pending = collector.start(questions, step=later, version=step, repeats=repeats)
            ahead.append(Started(first, pending))
        started = ahead.popleft()
        groups = collector.finish(started.pending)
        rows = rows_of_groups(
            dict(zip(mine, groups, strict=True)),
            groups_per_step=size,
            first_position=started.first_position,
            padding_id=padding_id,
            version=step,
        )
        yield replace(rows, wait_seconds=time.perf_counter() - began)


def weights_of(model: GPT) -> dict[str, Tensor]:
    """Give the weights by their names, as they are now; they change with the next step."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
