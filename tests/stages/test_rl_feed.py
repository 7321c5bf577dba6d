"""The feed of the RL stage, in this process."""

import json
import pickle
from pathlib import Path
from typing import Any

from nanoray.rl.steps import QuestionPlan
from nanoray.stages.rl_feed import RolloutFeed
from tests.rl.test_steps import WORLD, source, state_of_seed


def make_feed(storage: Path, seed: int = 3) -> RolloutFeed:
    return RolloutFeed(
        storage=str(storage),
        run="r",
        stage="rl",
        source=source(),
        plan=QuestionPlan(10, seed, 2),
        questions_hash="q",
        crew=None,
        max_staleness=0,
        num_held_out=4,
        device_batch_size=16,
    )


def test_how_the_policy_does_before_its_first_step_is_kept(tmp_path: Path) -> None:
    feed, no_shard = make_feed(tmp_path), None
    state, shard = state_of_seed(), no_shard

    unread: Any = shard
    rows = next(feed.open(WORLD, unread, 0)(state))

    before = json.loads((tmp_path / "r/rl/before.json").read_text())
    assert 0 <= before["validation/pass_at_1"] <= 1
    assert rows.record[:, 0].tolist() == [0] * 8 + [1] * 8
    assert rows.wait_seconds > 0


def test_a_feed_that_travels_asks_the_same_questions(tmp_path: Path) -> None:
    feed = make_feed(tmp_path)

    arrived = pickle.loads(pickle.dumps(feed))

    assert arrived.hash == feed.hash
    assert make_feed(tmp_path, seed=4).hash != feed.hash
    assert not feed.is_empty(5)
