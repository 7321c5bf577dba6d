"""What the driver of every stage decides before anything is started."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nanoray.cluster.connection import Resources
from nanoray.cluster.deadline import Allowance
from nanoray.config import InputError, RunReplacedError, StorageError, to_json
from nanoray.events import DONE, INTERRUPTED, append_event, read_events
from nanoray.stages.pretrain_config import PretrainConfig, check_rows, checkpoint_bytes
from nanoray.stages.stage_driver import (
    allowance_of,
    begun_config,
    check_space,
    mark_done,
    most_waiting,
    move_aside,
    recorded,
)
from nanoray.stages.training_job import TrainingJob
from nanoray.storage import RunFolder
from nanoray.train.checkpoint_files import committed_steps, step_name
from tests.stages.test_training_job import job as job_fixture
from tests.train.saved_states import open_checkpoints, state_at

job = job_fixture


def test_a_stage_that_has_begun_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")
    assert begun_config(PretrainConfig(), folder) is None
    folder.write_config(to_json(PretrainConfig(seed=7, depth=3)))

    begun = begun_config(PretrainConfig(seed=7, log_every=2), folder)

    assert begun is not None
    assert (begun.depth, begun.log_every) == (3, 2)
    with pytest.raises(InputError, match="--seed was 7 and is 8"):
        begun_config(PretrainConfig(seed=8), folder)
    assert begun_config(PretrainConfig(seed=8, fresh=True), folder) is None


def test_more_workers_than_rows_are_refused() -> None:
    check_rows(PretrainConfig(), rows=4, most_workers=4)

    with pytest.raises(InputError, match="--num-workers 5 is more than the 4 rows of a step"):
        check_rows(PretrainConfig(), rows=4, most_workers=5)


def test_a_stage_that_is_moved_aside_is_not_done_any_more(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")
    assert move_aside(folder) is None
    folder.write_config({"seed": 1})
    folder.run.mark_done("sft")

    moved = move_aside(folder)

    assert moved is not None
    assert Path(moved, "config.json").exists()
    assert folder.run.read_state()["stages_done"] == []


def test_on_cpus_one_checkpoint_at_a_time_waits_to_be_evaluated(job: TrainingJob) -> None:
    resources = Resources((1, 1), False, 1.0, 1, 1)

    assert most_waiting(job.recipe, resources) == 0
    assert most_waiting(replace(job.recipe, evaluate_every=5), resources) == 1


@dataclass
class RoomFor:
    """Stands for `shutil`, on a disk with so many bytes free."""

    free: int

    def disk_usage(self, path: str) -> "RoomFor":
        return self


def test_a_run_that_goes_on_needs_room_only_for_what_it_has_not_saved_yet(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, resources = job.folder, Resources((1, 1), False, 1.0, 1, 1)
    size = checkpoint_bytes(job.recipe.model)
    monkeypatch.setattr("nanoray.storage.shutil", RoomFor(size + 1))
    config = replace(job.config, keep_last=3)
    with pytest.raises(StorageError, match="GB free and the run needs"):
        check_space(config, job.recipe, folder, resources)

    for step in (5, 10, 15):
        saved = Path(folder.path("checkpoints", step_name(step)))
        saved.mkdir(parents=True)
        (saved / "manifest.json").write_text("{}")

    check_space(config, job.recipe, folder, resources)
    with pytest.raises(StorageError):
        check_space(replace(config, fresh=True), job.recipe, folder, resources)
    folder.run.mark_done(folder.name)
    monkeypatch.setattr("nanoray.storage.shutil", RoomFor(0))
    check_space(config, job.recipe, folder, resources)


def test_checkpoints_that_are_kept_for_good_need_room_too(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, resources = job.folder, Resources((1, 1), False, 1.0, 1, 1)
    size, steps = checkpoint_bytes(job.recipe.model), job.recipe.schedule.num_steps
    newest = replace(job.config, keep_last=1)
    monkeypatch.setattr("nanoray.storage.shutil", RoomFor(2 * size + 1))

    check_space(newest, job.recipe, folder, resources)
    for more in (replace(newest, save_every=1, keep_every=steps), replace(newest, save_at=(1,))):
        with pytest.raises(StorageError, match="raise --keep-every"):
            check_space(more, job.recipe, folder, resources)


def test_a_stage_whose_folder_was_deleted_begins_anew(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")
    folder.run.record_start(folder.run.begin_attempt("sft"), 20)
    folder.run.mark_done("sft")

    assert begun_config(PretrainConfig(), folder) is None

    state = folder.run.read_state()
    assert (state["stages_done"], state["start_step"], state["attempt"]) == ([], 0, 1)


def with_money(job: TrainingJob, max_cost: float) -> TrainingJob:
    return replace(job, config=replace(job.config, max_cost=max_cost))


def train(job: TrainingJob, seconds: float, devices: list[str]) -> None:
    """Leave what a start leaves whose group of such devices has trained for so long until now."""
    now = time.time()
    append_event(job.folder, "start", time=now - 2 * seconds)
    append_event(job.folder, "submit", time=now - 2 * seconds)
    price = job.price_of(devices)
    append_event(job.folder, "begin", time=now - seconds, dollars_per_hour=price)
    append_event(job.folder, "stop", time=now, why=DONE)


def test_a_stage_may_spend_what_its_groups_have_left_of_its_money(job: TrainingJob) -> None:
    assert allowance_of(job) is None
    assert allowance_of(with_money(job, 10.0)) == Allowance(10.0, "--max-cost 10 is spent")
    train(job, 600, ["h100"] * 8)  # of a range that goes to 32
    append_event(job.folder, "start")

    allowance = allowance_of(with_money(job, 10.0))

    assert allowance is not None
    assert allowance.dollars == pytest.approx(10 - 8 * 3 / 6, abs=0.01)
    with pytest.raises(InputError, match=r"--max-cost 4 is spent: .* has cost \$4\.00 so far"):
        allowance_of(with_money(job, 4.0))


def test_on_cpus_the_hours_before_somebody_asked_for_their_cost_are_charged_too(
    job: TrainingJob,
) -> None:
    append_event(job.folder, "start", time=0)
    append_event(job.folder, "begin", time=0)
    seconds = {"productive": 1800.0}
    append_event(job.folder, "account", time=1800, step=0, seconds=seconds)
    append_event(job.folder, "stop", time=1800, why=INTERRUPTED)

    allowance = allowance_of(with_money(job, 10.0))

    assert allowance is not None
    assert allowance.dollars == pytest.approx(10 - 1.5)  # one worker, three dollars an hour


def test_a_job_whose_run_was_taken_over_writes_no_event_into_it(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")

    with pytest.raises(RunReplacedError), recorded(folder, patience_seconds=1):
        raise RunReplacedError("/s/r", 1, 2, "process 7 on b")

    assert [event["event"] for event in read_events(folder)] == ["submit"]


def test_a_group_that_still_trains_saves_nothing_into_a_stage_that_begins_anew(
    tmp_path: Path,
) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("pretrain")
    checkpointer = open_checkpoints(folder)
    checkpointer.save(state_at(4))
    checkpointer.wait()

    move_aside(folder)
    checkpointer.save(state_at(8))

    with pytest.raises(RunReplacedError):
        checkpointer.wait()
    assert committed_steps(folder) == []
    assert not Path(folder.path()).exists()


def test_a_stage_that_is_moved_aside_takes_the_run_from_no_other_stage(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path), "r").stage("sft")
    folder.write_config({"seed": 1})
    ours = folder.run.begin_attempt("pretrain", "process 1 on a")

    move_aside(folder)

    folder.run.check_attempt(ours, "process 1 on a")


def test_a_stage_that_another_start_has_is_not_marked_as_done(job: TrainingJob) -> None:
    ours = job.folder.run.begin_attempt("pretrain", "process 1 on a")
    result = {"attempt": ours, "driver": "process 1 on a", "samples": []}
    job.folder.write_config({"seed": 1})
    job.folder.run.begin_attempt("pretrain", "process 2 on b")

    with pytest.raises(RunReplacedError, match="process 2 on b"):
        mark_done(job, result)

    assert not job.folder.run.is_done("pretrain")
    assert not Path(job.folder.path("result.json")).exists()
