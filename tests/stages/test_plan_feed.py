"""What a stage over a data plan reads; its stream by Ray is tested with whole runs."""

from nanoray.stages.stage_driver import planned
from nanoray.stages.training_job import TrainingJob
from nanoray.train.world import LocalWorld
from tests.stages.test_training_job import job as job_fixture

job = job_fixture


def test_a_feed_is_known_by_the_hash_of_its_plan(job: TrainingJob) -> None:
    feed = planned(job)

    assert feed.hash == feed.plan.hash
    assert feed.tokenizer.hash == feed.plan.tokenizer.hash


def test_units_without_a_row_are_passed_over(job: TrainingJob) -> None:
    feed = planned(job)

    assert feed.is_empty(0) == (len(feed.plan.pack(0).rows) == 0)


def test_validation_is_on_the_rows_that_are_held_out(job: TrainingJob) -> None:
    feed = planned(job)

    measure = feed.validation(LocalWorld(), device_batch_size=2)

    assert sum(map(len, measure.rows)) >= feed.validation_rows
    assert measure.key == "validation/bits_per_byte"
