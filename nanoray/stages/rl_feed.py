"""Rollouts, drawn as they are learned from: the feed of the RL stage."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial

import ray
from ray.data import DataIterator, Dataset

from nanoray.data.batches import StepRows
from nanoray.data.plan import Cursor
from nanoray.data.ray_data import data_context
from nanoray.metrics import BEFORE_FILE
from nanoray.rl.batches import in_batches
from nanoray.rl.pass_rate import PassRate
from nanoray.rl.rollout_workers import RolloutCrew, RolloutWorkers
from nanoray.rl.source import Collector, LocalRollouts, RolloutSource
from nanoray.rl.steps import QuestionPlan, rollout_steps
from nanoray.storage import RunFolder, write_json
from nanoray.text.tokenizer import Tokenizer
from nanoray.train.state import TrainState
from nanoray.train.world import World, wait_for_all


@dataclass
class RolloutFeed:
    """What the RL stage asks, who answers, and what it is measured by."""

    storage: str
    run: str
    stage: str
    source: RolloutSource
    plan: QuestionPlan
    questions_hash: str
    """Over all questions and their answers."""
    crew: RolloutCrew | None
    """Workers that each trainer has for itself; None where it draws its answers."""
    max_staleness: int
    num_held_out: int
    device_batch_size: int
    _collector: Collector | None = field(default=None, repr=False)
    """Of this process; it is never sent to another."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the policy."""
        return Tokenizer.from_json(self.source.tokenizer, "the run")

    @property
    def hash(self) -> str:
        """Hash over all that decides which answers are drawn, but the weights."""
        content = [
            self.questions_hash,
            asdict(self.plan),
            asdict(self.source.rollout),
            self.source.tokenizer,
            self.max_staleness,
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def begin(self, cursor: Cursor, *, step: int, num_steps: int) -> Dataset:
        """Give a stream that nobody reads: rollouts need the weights, which trainers have."""
        del cursor, step, num_steps
        data_context()
        return ray.data.from_items([0])

    def collector(self, world: World) -> Collector:
        """Give what draws answers for this process."""
        if self._collector is None:
            self._collector = (
                LocalRollouts(self.source, world.device)
                if self.crew is None
                else RolloutWorkers(self.source, self.crew)
            )
            self._collector.on_progress = lambda: world.beat("drawing rollouts")
        return self._collector

    def open(
        self, world: World, shard: DataIterator, step: int
    ) -> Callable[[TrainState], Iterator[StepRows]]:
        """Open nothing: what draws the rows needs the weights."""
        del shard, step
        return partial(self.steps, world)

    def steps(self, world: World, state: TrainState) -> Iterator[StepRows]:
        """Give this rank's rows of step after step, drawn by the weights of the state."""
        if state.step == 0:
            before = self.validation(world, 0).measure(state.model)
            if world.rank == 0:
                folder = RunFolder(self.storage, self.run).stage(self.stage)
                write_json(folder.fs, folder.path(BEFORE_FILE), before)
        for rows in rollout_steps(
            self.collector(world),
            self.plan,
            world,
            state,
            max_staleness=self.max_staleness,
            padding_id=self.tokenizer.bos_id,
        ):
            # Others may still draw: a rank that waited for them in the step would give no sign of
            # life, and be taken for hung.
            wait_for_all(world, "waiting for the rollouts of others")
            yield in_batches(rows, self.device_batch_size)

    def validation(self, world: World, device_batch_size: int) -> PassRate:
        """Give what the stage is measured by."""
        del device_batch_size
        assert self.source.held_out is not None, "the stage holds questions out"
        _, config = self.source.held_out
        return PassRate(
            self.collector(world),
            world,
            num_questions=self.num_held_out,
            num_samples=config.num_samples,
        )

    def is_empty(self, position: int) -> bool:
        """Say that every question has answers."""
        del position
        return False

    def totals(self) -> dict[str, int]:
        """Give nothing: no text is packed."""
        return {}
