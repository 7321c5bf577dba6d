from dataclasses import replace

import pytest

from nanoray.ops.doctor_data import DataFacts, ExpectedData, TokenizerFacts
from nanoray.ops.doctor_findings import Status
from nanoray.ops.doctor_memory import StepFacts, estimate_bytes
from nanoray.ops.doctor_run_checks import (
    Saving,
    check_data,
    check_lone_step,
    check_memory,
    check_storage,
    check_tokenizer,
)
from nanoray.ops.doctor_storage import StorageFacts
from nanoray.stages.pretrain import recipe_of
from nanoray.stages.pretrain_config import PretrainConfig, decide

GB = 10**9
H100_BYTES = 85_020_000_000
"""Of the card with 80 GB, as CUDA tells it: 79.2 GiB."""
FAST = StorageFacts(True, 500e6, 800e6, 0.002, 2000 * GB)
D34 = Saving(26 * GB, 9 * GB, num_kept=4, interval_seconds=3600.0)
EXPECTED = ExpectedData("/data", {"a.parquet": 10, "b.parquet": 20}, 30 * GB, was_saved=True)


def test_fast_storage_with_room_is_fine():
    speed, space = check_storage("/runs", {"a": FAST, "b": FAST}, D34, None)

    assert (speed.status, space.status) == (Status.OK, Status.OK)
    assert "26 s for a checkpoint of 26.00 GB, one in 3600 s at most" in speed.found


def test_slow_storage_is_warned_of_with_its_numbers():
    slow = replace(FAST, write_bytes_per_second=10e6)

    speed, _ = check_storage("/runs", {"a": FAST, "b": slow}, D34, None)

    assert speed.status is Status.WARNING
    assert speed.found.startswith("slow: write 10 MB/s (least, on b)")
    assert "900 s for a checkpoint" in speed.found


def test_storage_on_which_no_checkpoint_gets_done_in_time_fails():
    slow = replace(FAST, write_bytes_per_second=1e6)

    speed, _ = check_storage("/runs", {"a": slow}, D34, None)

    assert speed.status is Status.FAILED


def test_a_checkpoint_each_few_steps_of_unknown_length_gets_no_verdict():
    speed, _ = check_storage("/runs", {"a": FAST}, replace(D34, interval_seconds=None), None)

    assert speed.status is Status.OK
    assert speed.found.endswith("52 s for a checkpoint of 26.00 GB")


def test_a_node_that_sees_another_storage_is_named():
    (finding,) = check_storage("/runs", {"a": FAST, "b": StorageFacts()}, D34, None)

    assert finding.status is Status.FAILED
    assert finding.found == "b does not see what the driver wrote to /runs"


@pytest.mark.parametrize(("free", "status"), [(90, Status.FAILED), (150, Status.WARNING)])
def test_storage_with_little_room_is_found(free: int, status: Status):
    _, space = check_storage("/runs", {"a": replace(FAST, free_bytes=free * GB)}, D34, None)

    assert space.status is status
    assert "104.00 GB needed" in space.found


def test_errors_of_driver_and_nodes_are_told():
    (of_driver,) = check_storage("/runs", {}, D34, "Permission denied")
    (of_node,) = check_storage("/runs", {"b": StorageFacts(error="Stale handle")}, D34, None)

    assert of_driver.found == "/runs cannot be written: Permission denied"
    assert of_node.found == "b: Stale handle"
    assert of_driver.status is of_node.status is Status.FAILED


def test_an_object_store_is_not_asked_for_its_room():
    seen = replace(FAST, free_bytes=None, rename_seconds=None)

    (speed,) = check_storage("s3://b/runs", {"a": seen}, D34, None)

    assert speed.status is Status.OK
    assert "rename" not in speed.found


def test_a_missing_shard_is_named_with_its_node():
    seen = DataFacts(missing=("b.parquet",))

    finding = check_data(EXPECTED, {"x": DataFacts(), "y": seen}, None)

    assert finding.status is Status.FAILED
    assert finding.found == "y does not have 1 of 2 shards: b.parquet"


def test_a_shard_of_another_size_is_named_with_its_node():
    finding = check_data(EXPECTED, {"y": DataFacts(different=("a.parquet",))}, None)

    assert finding.status is Status.FAILED
    assert "y has a.parquet in another size" in finding.found


def test_data_that_the_driver_cannot_list_fail():
    finding = check_data(None, {}, "--data /x does not exist. Give another.")

    assert finding.status is Status.FAILED
    assert (finding.found, finding.remedy) == ("--data /x does not exist.", "Give another.")


def test_shards_that_are_yet_to_be_fetched_are_warned_of():
    none = check_data(ExpectedData("/d", {}, 0, False, to_fetch=7), {"x": DataFacts()}, None)
    some = check_data(replace(EXPECTED, to_fetch=5), {"x": DataFacts()}, None)

    assert none.status is some.status is Status.WARNING
    assert "none of 7 shards" in none.found
    assert "5 more are fetched" in some.found


@pytest.mark.parametrize(
    ("facts", "status", "text"),
    [
        (TokenizerFacts(), Status.OK, "is trained when the run begins"),
        (TokenizerFacts(kept="a" * 64, vocab_size=512), Status.OK, "hash aaaa"),
        (
            TokenizerFacts("a" * 64, "b" * 64, vocab_size=512),
            Status.FAILED,
            f"--tokenizer has hash {'a' * 16}, the run's own {'b' * 16}",
        ),
        (
            TokenizerFacts(None, "b" * 64, "c" * 64, 40, 512),
            Status.FAILED,
            f"step 40 was trained with tokenizer {'c' * 16}, not {'b' * 16}",
        ),
        (TokenizerFacts(None, None, "c" * 64, 40), Status.FAILED, "tokenizer.json is gone"),
        (TokenizerFacts("a" * 64, vocab_size=400), Status.FAILED, "it has 400 ids"),
        (TokenizerFacts(error="x does not exist."), Status.FAILED, "x does not exist."),
    ],
)
def test_tokenizers_must_agree(facts: TokenizerFacts, status: Status, text: str):
    finding = check_tokenizer(facts, 512)

    assert finding.status is status
    assert text in finding.found
    assert finding.remedy or status is not Status.FAILED


def test_a_step_that_fits_tells_its_headroom():
    finding = check_memory(StepFacts(8, 40 * GB, 80 * GB, 9.0), 40 * GB, 1)

    assert finding.status is Status.OK
    assert "50 % headroom" in finding.found


def test_a_batch_that_is_out_of_memory_comes_with_the_largest_that_fits():
    step = StepFacts(32, 70 * GB, 80 * GB, 9.0, fits=False, largest_fitting=8)

    finding = check_lone_step(step, 100 * GB, 90 * GB)

    assert finding.status is Status.FAILED
    assert finding.found == "a step of 32 rows is out of memory: there are 80.00 GB"
    assert finding.remedy == "Give --device-batch-size 8."


def test_a_batch_that_cannot_fit_says_what_it_would_need():
    step = StepFacts(32, 700 * GB, 80 * GB, 0.0, False, 0, was_tried=False)

    finding = check_lone_step(step, 700 * GB, 600 * GB)

    assert "cannot fit: 700.00 GB or more are needed, there are 80.00 GB" in finding.found
    assert "Not even one row fits" in finding.remedy


@pytest.mark.parametrize(
    ("num_workers", "status"), [(8, Status.WARNING), (2, Status.FAILED), (1, Status.FAILED)]
)
def test_a_run_whose_workers_share_what_one_alone_cannot_hold_is_judged_by_the_estimate(
    num_workers: int, status: Status
):
    config = decide(PretrainConfig(depth=40), on_gpu=True, dtype="bfloat16")
    recipe, rows = recipe_of(config), recipe_of(config).device_batch_size
    step = StepFacts(rows, 60 * GB, H100_BYTES, 9.0, fits=False, largest_fitting=rows // 2)

    finding = check_lone_step(
        step,
        estimate_bytes(recipe, rows, on_gpu=True),
        estimate_bytes(recipe, rows, num_workers, on_gpu=True),
    )

    assert finding.status is status
    assert f"a step of {rows} rows is out of memory: there are 85.02 GB" in finding.found


def test_an_estimate_that_knows_of_no_lack_of_memory_excuses_none():
    step = StepFacts(8, 60 * GB, 80 * GB, 9.0, fits=False, largest_fitting=4)

    assert check_lone_step(step, 60 * GB, 50 * GB).status is Status.FAILED


def test_workers_of_one_node_share_its_memory():
    step = StepFacts(8, 30 * GB, 80 * GB, 1.0)

    assert check_memory(step, 30 * GB, 2).status is Status.OK
    assert check_memory(step, 30 * GB, 3).status is Status.FAILED
    assert check_memory(step, 26 * GB, 3).status is Status.WARNING


def test_a_process_that_was_killed_is_told():
    finding = check_memory("the worker died", 30 * GB, 1)

    assert finding.status is Status.FAILED
    assert "the worker died; estimated are 30.00 GB" in finding.found


def test_a_step_that_takes_too_long_is_no_failure():
    finding = check_memory(None, 30 * GB, 1)

    assert finding.status is Status.SKIPPED
    assert "estimated are 30.00 GB" in finding.found
