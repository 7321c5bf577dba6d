"""What a worker does, in this process and without Ray."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanoray.cluster.connection import Resources
from nanoray.cluster.monitor import Start
from nanoray.cluster.recovery import Cause, Decision, Failure
from nanoray.config import RunReplacedError, StorageError, to_json
from nanoray.data.batches import Share, StepRows, step_rows
from nanoray.data.blocks import layout_for, plain_blocks
from nanoray.data.manifest import make_manifest
from nanoray.data.plan import Cursor, DataPlan
from nanoray.events import read_events
from nanoray.stages import training_job
from nanoray.stages.plan_feed import PlanFeed
from nanoray.stages.pretrain import recipe_of
from nanoray.stages.pretrain_config import PretrainConfig, decide, rows_per_step, validation_rows
from nanoray.stages.training_job import (
    TrainingJob,
    build_state,
    checkpoint_facts,
    run_worker,
    write_samples,
)
from nanoray.storage import StageFolder
from nanoray.train.checkpoint import Checkpointer, SavePolicy
from nanoray.train.checkpoint_files import committed_steps, first_step
from nanoray.train.state import TrainState
from nanoray.train.world import LocalWorld, World
from tests.running import small_corpus
from tests.support import tiny_tokenizer

WORLD = LocalWorld()


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    config = PretrainConfig(
        run="r",
        depth=1,
        head_dim=32,
        vocab_size=tiny_tokenizer().vocab_size,
        max_seq_len=64,
        total_batch_tokens=512,
        device_batch_size=4,
        validation_tokens=256,
        num_steps=12,
        save_every=4,
        validate_every=6,
        eager=True,
    )
    decided = decide(config, on_gpu=False, dtype="float32")
    manifest = make_manifest(str(small_corpus(tmp_path / "data")), "text")
    plan = DataPlan(manifest, tiny_tokenizer(), max_seq_len=64, packing="bestfit", seed=42)
    resources = Resources((1, 1), False, 1.0, 1, 1)
    layout = layout_for(rows_per_step(decided), 4, 1)
    feed = LocalFeed(plan, layout, resources, 2.5, 50.0, validation_rows(decided), None, pacer=None)
    return TrainingJob(
        stage="pretrain",
        config=decided,
        recipe=recipe_of(decided),
        storage=str(tmp_path / "runs"),
        feed=feed,
        resources=resources,
        pacer=None,
    )


class LocalFeed(PlanFeed):
    """The same rows, packed in this very process."""

    def open(
        self, world: World, shard: object, step: int
    ) -> Callable[[TrainState], Iterator[StepRows]]:
        def rows_for(state: TrainState) -> Iterator[StepRows]:
            blocks = plain_blocks(self.plan, self.layout, state.cursor)
            return step_rows(blocks, self.layout, Share(), pin=False)

        return rows_for


def with_config(job: TrainingJob, **fields: Any) -> TrainingJob:
    """Give the job with some fields of its config changed, and what follows from them."""
    assert isinstance(job.config, PretrainConfig)
    config = replace(job.config, **fields)
    return replace(job, config=config, recipe=recipe_of(config))


def work(job: TrainingJob, start_step: int = 0) -> dict[str, Any]:
    """Do what a group of one worker does from a step on."""
    job.folder.write_config(to_json(job.config))
    attempt = job.folder.run.begin_attempt("pretrain")
    no_shard: Any = None
    return run_worker(
        job, WORLD, no_shard, Start(attempt, start_step, job.recipe.device_batch_size)
    )


def lines_of(job: TrainingJob, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(job.folder.path(name)).read_text().splitlines()]


def weights_of(job: TrainingJob, step: int) -> str:
    path = job.folder.path("checkpoints", f"step_{step:06d}", "manifest.json")
    digest: str = json.loads(Path(path).read_text())["files"]["model.safetensors"]["sha256"]
    return digest


def test_a_worker_trains_to_the_end_and_leaves_checkpoints_logs_and_samples(
    job: TrainingJob,
) -> None:
    result = work(job)

    metrics = lines_of(job, "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, 13))
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"]
    assert "validation/bits_per_byte" in metrics[5]
    assert committed_steps(job.folder) == [4, 8, 12]
    assert len(result["samples"]) == 4
    assert result["peak_memory_bytes"] > 2**20
    assert job.newest_step() == 12


def test_a_worker_that_goes_on_from_a_checkpoint_ends_with_the_same_weights(
    job: TrainingJob, tmp_path: Path
) -> None:
    work(job)
    other = replace(job, storage=str(tmp_path / "other"))
    short = with_config(other, num_steps=8, warmdown_ratio=0.0)
    whole = with_config(replace(other, storage=str(tmp_path / "whole")), warmdown_ratio=0.0)
    work(short)

    work(replace(whole, storage=other.storage), start_step=8)
    work(whole)

    assert weights_of(other, 12) == weights_of(whole, 12)
    assert lines_of(other, "ledger.jsonl") == lines_of(whole, "ledger.jsonl")
    assert lines_of(whole, "ledger.jsonl") == lines_of(job, "ledger.jsonl")


def test_samples_follow_from_the_weights_alone(job: TrainingJob) -> None:
    state = build_state(job, WORLD)

    first, second = write_samples(job, state), write_samples(job, state)

    assert first == second
    assert first[0][0] == "The capital of France is"


def test_the_state_begins_with_the_weights_of_the_seed(job: TrainingJob) -> None:
    again = build_state(job, WORLD)
    other = build_state(with_config(job, seed=7), WORLD)

    state = build_state(job, WORLD)

    assert torch.equal(state.model.embedding.weight, again.model.embedding.weight)
    assert not torch.equal(state.model.embedding.weight, other.model.embedding.weight)
    assert (state.step, state.tokens) == (0, 0)


class StreamlessFeed(LocalFeed):
    """A feed that says where its stream would begin."""

    def begin(self, cursor: Cursor, *, step: int, num_steps: int) -> Any:
        return cursor


def checkpointer_of(job: TrainingJob, attempt: int) -> Checkpointer:
    policy = SavePolicy(patience_seconds=0.5)
    facts = checkpoint_facts(job)
    return Checkpointer(job.folder, WORLD, attempt=attempt, facts=facts, policy=policy)


def begun(job: TrainingJob) -> TrainingJob:
    """Give the job with a feed that needs no cluster, and its stage begun."""
    assert isinstance(job.feed, PlanFeed)
    job.folder.write_config(to_json(job.config))
    return with_config(
        replace(job, feed=StreamlessFeed(**vars(job.feed))), storage_patience_seconds=0.5
    )


def test_no_earlier_group_commits_while_the_step_to_start_from_is_looked_for(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(job)
    old = checkpointer_of(job, job.take_attempt("process 1 on a", 0))
    state = build_state(job, WORLD)
    state.step = 100
    old.save(state)
    old.wait()
    late: list[str] = []

    def look(folder: StageFolder) -> int:
        found = first_step(folder)
        state.step = 200
        old.save(state)
        with pytest.raises(RunReplacedError) as raised:
            old.wait()
        late.append(str(raised.value))
        return found

    monkeypatch.setattr(training_job, "first_step", look)
    attempt = job.take_attempt("process 1 on a", 1)
    step, _ = job.begin(attempt)

    assert (attempt, step, len(late)) == (2, 100, 1)
    assert committed_steps(job.folder) == [100]


def test_a_driver_that_dies_before_it_has_chosen_a_step_leaves_a_run_that_goes_on(
    job: TrainingJob,
) -> None:
    job = begun(job)
    first = checkpointer_of(job, job.take_attempt("process 1 on a", 0))
    state = build_state(job, WORLD)
    state.step = 8
    first.save(state)
    first.wait()
    job.begin(1)
    job.take_attempt("process 1 on a", 1)  # and here it dies

    attempt = job.take_attempt("process 2 on b", 0)
    step, _ = job.begin(attempt)

    assert (attempt, step) == (3, 8)
    with pytest.raises(RunReplacedError, match="attempt 3 has replaced attempt 2"):
        job.begin(2)
    with pytest.raises(RunReplacedError, match="belongs to process 2 on b"):
        job.take_attempt("process 1 on a", 2)


def test_a_first_attempt_whose_checkpoints_are_away_is_not_begun_anew(job: TrainingJob) -> None:
    work(job)
    job = begun(job)
    lines = lines_of(job, "metrics.jsonl")
    checkpoints = Path(job.folder.path("checkpoints"))
    away = checkpoints.rename(checkpoints.with_name("away"))

    with pytest.raises(StorageError, match="checkpoints is not there, or empty"):
        job.begin(job.take_attempt("process 1 on a", 0))

    away.rename(checkpoints)
    assert job.begin(job.take_attempt("process 1 on a", 0))[0] == 12
    assert lines_of(job, "metrics.jsonl") == lines


def test_a_failure_is_recorded_by_the_newest_start_only(job: TrainingJob) -> None:
    job.folder.write_config(to_json(job.config))
    job.folder.fs.makedirs(job.folder.path("checkpoints"), exist_ok=True)
    decision = Decision(True, "lost worker: 1 of 10", 8)
    first = job.take_attempt("process 1 on a", 0)
    job.record(first, Failure(Cause.LOST, 3, "gone"), decision)
    job.record(first, Failure(Cause.GROWTH, 0, "room for 8"), decision)
    job.take_attempt("process 2 on b", 0)

    with pytest.raises(RunReplacedError, match="attempt 2 has replaced attempt 1"):
        job.record(first, Failure(Cause.LOST, 3, "gone"), decision)

    lost, growth = read_events(job.folder)
    assert lost.items() >= {"event": "failure", "cause": "lost worker", "rank": 3}.items()
    assert growth["event"] == "growth"


ON_GPUS = Resources((8, 32), True, 8.0, 8, 8)
"""Of a cluster."""


def recorded_begin(job: TrainingJob, devices: list[str]) -> dict[str, Any]:
    """Let a group of such devices begin, and give what is recorded of that."""
    job.folder.write_config(to_json(job.config))
    job.folder.fs.makedirs(job.folder.path("checkpoints"), exist_ok=True)
    attempt = job.folder.run.begin_attempt("pretrain")
    price = job.record_begin(Start(attempt, 4, 8), devices)
    event = read_events(job.folder)[-1]
    assert event.items() >= {"event": "begin", "attempt": attempt, "step": 4}.items()
    assert (event["num_workers"], event.get("dollars_per_hour")) == (len(devices), price)
    return event


def test_a_group_has_the_price_of_the_workers_that_it_has(job: TrainingJob) -> None:
    on_gpus = replace(job, resources=ON_GPUS)

    small, large, mixed = (
        recorded_begin(on_gpus, devices)
        for devices in (["h100"] * 8, ["h100"] * 32, ["b200"] * 8 + ["a100"] * 8)
    )

    assert small["dollars_per_hour"] == pytest.approx(8 * 3.0)
    assert large["dollars_per_hour"] == pytest.approx(32 * 3.0)
    assert mixed["dollars_per_hour"] == pytest.approx(8 * 5.6 + 8 * 1.5)
    given = with_config(on_gpus, dollars_per_gpu_hour=6.9)
    assert recorded_begin(given, ["h100"] * 8)["dollars_per_hour"] == pytest.approx(8 * 6.9)


def test_rollout_workers_have_a_price_as_far_as_their_trainers_are_there(job: TrainingJob) -> None:
    resources = replace(ON_GPUS, num_workers=(2, 4), gpus_beside=12)  # three for each trainer
    with_rollouts = replace(job, resources=resources)

    assert recorded_begin(with_rollouts, ["h200"] * 4)["dollars_per_hour"] == pytest.approx(
        16 * 4.0
    )
    assert recorded_begin(with_rollouts, ["h200"] * 2)["dollars_per_hour"] == pytest.approx(8 * 4.0)


def test_on_cpus_workers_have_a_price_once_somebody_has_asked_for_the_cost(
    job: TrainingJob,
) -> None:
    assert "dollars_per_hour" not in recorded_begin(job, ["cpu"] * 2)
    asked = with_config(job, max_cost=10.0)
    assert recorded_begin(asked, ["cpu"] * 2)["dollars_per_hour"] == pytest.approx(2 * 3.0)

    assert recorded_begin(job, ["cpu"])["dollars_per_hour"] == pytest.approx(3.0)


def test_a_worker_on_storage_that_is_not_the_drivers_says_so_before_it_trains(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_job, "SHARED_SECONDS", 0.1)
    job.folder.write_config(to_json(job.config))
    no_shard: Any = None

    with pytest.raises(StorageError, match="it has no attempt 1 there, only 0"):
        run_worker(job, WORLD, no_shard, Start(1, 0, 4))

    assert committed_steps(job.folder) == []


def test_a_worker_that_was_replaced_while_it_started_leaves_the_logs_alone(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    work(job)
    before = lines_of(job, "metrics.jsonl")
    run = job.folder.run
    ours = run.begin_attempt("pretrain", "process 1 on a")
    build = training_job.build_state

    def be_slow(*given: Any) -> Any:
        run.begin_attempt("pretrain", "process 2 on b")
        return build(*given)

    monkeypatch.setattr(training_job, "build_state", be_slow)
    no_shard: Any = None
    with pytest.raises(RunReplacedError):
        run_worker(job, WORLD, no_shard, Start(ours, 4, 4, "process 1 on a"))

    assert lines_of(job, "metrics.jsonl") == before
