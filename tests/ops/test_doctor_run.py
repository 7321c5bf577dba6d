"""What can be said of a run with something wrong, by the driver of a cluster."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanoray.cluster.connection import NotEnoughResourcesError, Resources
from nanoray.config import InputError, StorageError, to_json
from nanoray.ops.doctor_findings import Status
from nanoray.ops.doctor_run import (
    NOWHERE,
    MeantRun,
    any_room,
    attempt,
    list_data,
    room_finding,
    save_interval,
    saving_of,
    settings_findings,
    settle,
    stream_bytes,
)
from nanoray.stages.pretrain import recipe_of
from nanoray.stages.pretrain_config import PretrainConfig, decide
from nanoray.storage import RunFolder, write_json
from nanoray.text.tokenizer_file import save_tokenizer
from tests.driver import connected
from tests.running import Cluster
from tests.support import tiny_tokenizer

TINY_RUN = PretrainConfig(run="r", depth=2, max_seq_len=64, num_steps=4)


@pytest.fixture(scope="module")
def driver(ray_cluster: Cluster) -> Iterator[None]:
    """Drive a cluster of eight CPUs."""
    with connected(ray_cluster):
        yield


def begin(storage: Path, config: PretrainConfig) -> None:
    """Let a run have begun with a config."""
    folder = RunFolder(str(storage), "r").stage("pretrain")
    decided = decide(config, on_gpu=False, dtype="float32")
    write_json(folder.fs, folder.path("config.json"), to_json(decided))


@pytest.mark.cluster
def test_a_run_that_works_out_has_no_findings_but_its_room(driver, tmp_path: Path):
    run = settle(TINY_RUN, str(tmp_path))

    assert settings_findings(run, storage_is_away=False) == []
    assert room_finding(run).status is Status.OK
    assert f"{tmp_path}/r/pretrain, " in room_finding(run).found
    assert (stream_bytes(run) or 0) > 0
    assert saving_of(run, None)


@pytest.mark.cluster
def test_more_workers_than_rows_have_no_room_and_others_have(driver, tmp_path: Path):
    crowded = settle(replace(TINY_RUN, num_workers="3", total_batch_tokens=128), str(tmp_path))
    large = settle(replace(TINY_RUN, num_workers="500"), str(tmp_path))

    assert "more than the 2 rows of a step" in room_finding(crowded).found
    assert isinstance(large.room_error, NotEnoughResourcesError)
    assert large.recipe is not None
    assert (any_room(large) or large.resources).num_workers == (1, 1)  # type: ignore[union-attr]


@pytest.mark.cluster
def test_a_run_that_has_begun_knows_its_vocabulary_without_the_named_tokenizer(
    driver, tmp_path: Path
):
    begin(tmp_path, replace(TINY_RUN, vocab_size=600))
    unread = replace(TINY_RUN, tokenizer=f"{tmp_path}/none.json")

    run = settle(unread, str(tmp_path))

    assert run.config.vocab_size == 600
    assert run.config.tokenizer == unread.tokenizer
    assert settings_findings(run, storage_is_away=False) == []


@pytest.mark.cluster
def test_without_the_named_tokenizer_a_vocabulary_is_assumed_and_said(driver, tmp_path: Path):
    unread = replace(TINY_RUN, tokenizer=f"{tmp_path}/none.json")

    run = settle(unread, str(tmp_path))

    assert run.config.tokenizer == unread.tokenizer
    (finding,) = settings_findings(run, storage_is_away=False)
    assert finding.status is Status.SKIPPED
    assert "8,192 ids are assumed" in finding.found


@pytest.mark.cluster
def test_a_run_that_began_otherwise_is_looked_at_with_todays_flags(driver, tmp_path: Path):
    begin(tmp_path, TINY_RUN)
    save_tokenizer(tiny_tokenizer(), RunFolder(str(tmp_path), "r").tokenizer_address)

    run = settle(replace(TINY_RUN, depth=3), str(tmp_path))

    (finding,) = settings_findings(run, storage_is_away=False)
    assert (finding.status, run.config.depth, run.config.fresh) == (Status.FAILED, 3, False)
    assert finding.found == "This run began with other settings: --depth was 2 and is 3."
    assert finding.remedy.startswith("Give the old values to resume it")


@pytest.mark.cluster
def test_a_damaged_config_fails_where_the_storage_answers(driver, tmp_path: Path):
    (tmp_path / "r" / "pretrain").mkdir(parents=True)
    (tmp_path / "r" / "pretrain" / "config.json").write_text("{")

    run = settle(TINY_RUN, str(tmp_path))

    (finding,) = settings_findings(run, storage_is_away=False)
    assert finding.status is Status.FAILED
    assert finding.remedy == "Restore it, or move it aside."
    assert run.recipe is not None


@pytest.mark.cluster
def test_of_a_storage_that_cannot_be_opened_nothing_is_read(driver, tmp_path: Path):
    run = settle(TINY_RUN, "foo://bar")

    assert run.folder.run.storage == NOWHERE
    assert isinstance(run.settings_errors[0], StorageError)
    (finding,) = settings_findings(run, storage_is_away=True)
    assert finding.status is Status.SKIPPED
    assert NOWHERE not in room_finding(run).found
    with pytest.raises(StorageError):
        list_data(replace(run, config=replace(run.config, data="climbmix")), "foo://bar")


@pytest.mark.cluster
def test_wrong_settings_are_told_where_the_storage_is_away_too(driver, tmp_path: Path):
    wrong = replace(TINY_RUN, depth=3, head_dim=128, data="climbmix")

    run = settle(wrong, "foo://bar")

    assert run.recipe is None
    (finding,) = settings_findings(run, storage_is_away=True)
    assert finding.found.startswith("--head-dim 128 does not divide")
    assert room_finding(run).found == "room for 1 worker(s) on CPU, 7 CPUs each"
    assert list_data(run, "foo://bar") is None
    assert (stream_bytes(run), saving_of(run, None)) == (None, None)


def test_only_wrong_input_and_storage_that_is_away_become_findings():
    def fail_with(error: Exception) -> None:
        raise error

    assert attempt(lambda: 3) == (3, None)
    wrong, denied = InputError("--x is wrong."), PermissionError(13, "denied")
    assert attempt(lambda: fail_with(wrong)) == (None, wrong)
    assert attempt(lambda: fail_with(denied)) == (None, denied)
    with pytest.raises(KeyError):
        attempt(lambda: fail_with(KeyError("a bug")))


def interval_of(folder: Path, gpu: str | None, **saving: Any) -> float | None:
    """Give the interval of d34's checkpoints on eight GPUs."""
    config = PretrainConfig(depth=34, device_batch_size=4, **saving)
    decided = decide(config, on_gpu=True, dtype="bfloat16")
    resources = Resources((8, 8), True, 8.0, 8, 1)
    stage = RunFolder(str(folder), "d34").stage("pretrain")
    recipe = recipe_of(decided)
    return save_interval(MeantRun(decided, stage, recipe, resources), recipe, gpu)


def test_the_time_between_checkpoints_follows_from_their_steps(tmp_path: Path):
    h100 = "NVIDIA H100 80GB HBM3"

    # A step takes 1.99 s at 47.4 % MFU.
    assert interval_of(tmp_path, h100, save_every=10) == pytest.approx(19.9, abs=0.1)
    assert interval_of(tmp_path, h100, save_every=10, save_every_minutes=0.25) == 15
    assert interval_of(tmp_path, h100, save_every_minutes=5) == 300
    assert interval_of(tmp_path, h100) == 3600
    assert interval_of(tmp_path, None, save_every=10) is None
    assert interval_of(tmp_path, None, save_every=10, save_every_minutes=5) == 300
