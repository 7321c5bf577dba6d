import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoray.config import InputError, StorageError
from nanoray.ops.fetch import FetchConfig, fetch, wanted_text
from tests.hub import Hub, running_hub

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_the_plan_of_d34_is_that_of_nanochat(hub, tmp_path):
    config = FetchConfig(
        data="climbmix", storage=str(tmp_path), depth=34, tokens_per_param=40, dry_run=True
    )

    plan = fetch(config)

    # nanochat's d34: 169,150 steps of 524,288 tokens, and 1,703 shards to train on.
    assert "d34 with 65,536 ids reads 88,683,315,200 tokens: 425.7 GB of text" in plan
    assert "1,704 of the 6,543 shards of climbmix" in plan
    assert "to be fetched: 1,704 shards, about 170.4 GB" in plan
    assert "28 min at 100 MB/s" in plan
    assert hub.num_requests == 0
    assert os.listdir(tmp_path) == []


def test_a_run_longer_than_the_dataset_is_told_so(tmp_path):
    config = FetchConfig(
        data="fineweb-edu", storage=str(tmp_path), depth=40, tokens_per_param=40, dry_run=True
    )

    plan = fetch(config)

    assert "which is all of the dataset 1.5 times" in plan
    assert "1,823 of the 1,823 shards" in plan


def test_a_relative_storage_is_meant_from_where_the_job_is_called(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    told = fetch(FetchConfig(data="climbmix", num_shards=1))

    assert told == f"all 2 shards are in {tmp_path}/runs/datasets/climbmix"
    assert "checksums.json" in os.listdir(tmp_path / "runs/datasets/climbmix")


def test_what_is_there_is_not_fetched_and_the_plan_says_so(hub, tmp_path):
    config = FetchConfig(data="climbmix", storage=str(tmp_path), num_shards=1)
    fetch(config)
    before = hub.num_requests

    told = fetch(config)

    assert "nothing is to be fetched" in told
    assert hub.num_requests == before


def test_a_dataset_larger_than_the_disk_is_refused(hub, tmp_path):
    config = FetchConfig(data="climbmix", storage="/dev/shm/nanoray-none", num_shards=10**6)

    with pytest.raises(StorageError, match=r"GB free, and 6,543 more shards need 654\.3 GB"):
        fetch(config)

    assert hub.num_requests == 0
    assert not os.path.exists("/dev/shm/nanoray-none")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"data": "climmix", "num_shards": 1},
            "climmix is no public dataset.*climbmix or fineweb-edu",
        ),
        ({"data": "climbmix"}, "Nothing says how much to fetch"),
        ({"data": "climbmix", "num_shards": 1, "depth": 4}, "--num-shards and --depth both"),
        ({"data": "climbmix", "num_shards": 0}, "--num-shards 0 is too small"),
        (
            {"data": "climbmix", "num_steps": 1, "target_flops": 1e9},
            "--num-steps and --target-flops",
        ),
        ({"data": "climbmix", "depth": 3}, "--head-dim 128 does not divide"),
        ({"data": "climbmix", "tokens_per_param": 1e300}, r"1e\+300 is more than 1e\+18 tokens"),
    ],
)
def test_wrong_input_is_told_with_its_remedy(wrong, message, tmp_path):
    with pytest.raises(InputError, match=message):
        fetch(FetchConfig(storage=str(tmp_path), dry_run=True, **wrong))


def test_more_shards_than_there_are_is_all_of_them():
    num_bytes, _ = wanted_text(FetchConfig(data="climbmix", num_shards=10**400))

    assert num_bytes == 6542 * 250e6


def test_the_job_fetches_without_ray(hub, tmp_path):
    check = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); "
    check += "assert 'ray' not in sys.modules"
    job = str(REPOSITORY / "jobs" / "data.py")
    start = f"import sys; sys.argv = {[job, '--data', 'climbmix', '--num-shards', '2']!r}; {check}"

    ran = subprocess.run(
        [sys.executable, "-c", start], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f"all 3 shards are in {tmp_path}/runs/datasets/climbmix"
    assert ran.stderr.index("fetching 3 shards, about 0.3 GB") < ran.stderr.index("1 of 3")
    assert "about 0 s left" in ran.stderr
