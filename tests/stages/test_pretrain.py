"""Pretraining as a user starts it: what it leaves behind, and what it says to wrong input."""

import dataclasses
import json
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanoray.config import DataError
from nanoray.data.manifest import Manifest, make_manifest
from nanoray.data.plan import DataPlan
from nanoray.stages.pretrain import check_gives_rows, prepare, told_of_repetition
from nanoray.stages.pretrain_config import PretrainConfig
from nanoray.storage import RunFolder
from nanoray.text.tokenizer import Tokenizer
from nanoray.text.tokenizer_file import save_tokenizer
from tests.data.shards import write_shard
from tests.driver import connected
from tests.faults.test_kill import arguments
from tests.running import ROOT, TINY, Cluster, run_job, small_corpus
from tests.support import tiny_tokenizer


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    storage: Path
    command: list[object]
    code: int
    output: str

    @property
    def stage(self) -> Path:
        return self.storage / "r" / "pretrain"


@pytest.fixture(scope="module")
def finished(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run to the end once, for all tests that only look at what is left, or that change nothing."""
    storage = tmp_path_factory.mktemp("finished")
    command = arguments(storage, "r", 2, steps=30)
    return Finished(
        storage, command, *run_job("pretrain.py", *command, env=ray_cluster.environment())
    )


@pytest.mark.cluster
def test_a_run_leaves_report_metrics_ledger_and_verified_checkpoints(finished: Finished):
    assert finished.code == 0, finished.output
    stage = finished.stage
    steps = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps] == list(range(1, 31))
    promised = {"train/loss", "train/tokens_per_second", "train/mfu", "train/data_wait_seconds"}
    assert all(promised <= set(step) for step in steps)
    assert "validation/bits_per_byte" in steps[-1]
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    ledger = [json.loads(line) for line in (stage / "ledger.jsonl").read_text().splitlines()]
    assert [entry["first"] for entry in ledger[1:]] == [entry["next"] for entry in ledger[:-1]]
    assert (stage / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "r / pretrain" in (stage / "report.html").read_text()
    assert "bits per byte" in finished.output
    assert "xz -9e" in finished.output
    files = {path.name for path in (stage / "checkpoints" / "step_000030").iterdir()}
    optimizers = {f"optimizer-{rank:05d}-of-00002.safetensors" for rank in range(2)}
    assert files == {"model.safetensors", "state.json", "manifest.json"} | optimizers


@pytest.mark.slow
@pytest.mark.cluster
def test_a_resume_with_another_identity_is_refused_with_the_difference(
    ray_cluster: Cluster, finished: Finished, tmp_path: Path
):
    env, command = ray_cluster.environment(), finished.command
    pq.write_table(pa.table({"text": ["entirely other " * 50] * 40}), tmp_path / "text.parquet")

    seed, seed_said = run_job("pretrain.py", *command, "--seed", 7, env=env)
    data, data_said = run_job("pretrain.py", *command, "--data", tmp_path, env=env)
    kept, kept_said = run_job(
        "pretrain.py", *command, "--device-batch-size", 4, "--log-every", 3, env=env
    )

    assert (seed, data, kept) == (2, 2, 0), kept_said
    assert "--seed was 42 and is 7" in seed_said
    assert "text.parquet has changed" in data_said
    assert "is finished" in kept_said


@pytest.mark.slow
@pytest.mark.cluster
def test_fresh_moves_a_finished_run_aside(ray_cluster: Cluster, finished: Finished):
    weights = finished.stage / "checkpoints" / "step_000030" / "model.safetensors"
    before = weights.read_bytes()

    code, output = run_job(
        "pretrain.py",
        *(*finished.command, "--fresh", "--seed", "7", "--num-steps", "4"),
        env=ray_cluster.environment(),
    )

    assert code == 0, output
    assert [path.name for path in (finished.stage / "checkpoints").iterdir()] == ["step_000004"]
    aside = [p for p in finished.stage.parent.iterdir() if p.name.startswith("pretrain.before-")]
    assert len(aside) == 1
    assert (aside[0] / "checkpoints" / "step_000030" / "model.safetensors").read_bytes() == before
    assert (aside[0] / "tokenizer.json").exists()


BAD_INPUT = {
    "missing folder": (["--data", "{tmp}/nowhere"], "does not exist"),
    "empty folder": (["--data", "{tmp}/empty"], "no file that ends in .parquet"),
    "no text column": (["--text-column", "body"], "has no column 'body'; it has 'text'"),
    "truncated shard": (["--data", "{tmp}/broken"], "bad.parquet is no whole parquet file"),
    "not text": (["--data", "{tmp}/numbers"], "holds int64 in column 'text', not text"),
    "batch": (["--total-batch-tokens", "1000"], "The next one up is 1024"),
    "device batch": (["--device-batch-size", "3"], "Choose one of 1, 2, 4, 8, 16"),
    "depth": (["--depth", "0"], "--depth 0 is too small"),
    "head dimension": (["--head-dim", "48"], "--head-dim 48 does not divide the width 64"),
    "workers": (["--num-workers", "64"], "and the cluster has 8"),
    "rows": (["--num-workers", "17", "--cpus-per-worker", "0.2"], "more than the 16 rows"),
    "no CPU for Ray Data": (["--cpus-per-worker", "8"], "Ray Data"),
    "storage": (["--storage", "/proc/runs"], "cannot be written"),
    "typo": (["--detph", "4"], "--depth"),
    "horizons": (["--target-flops", "1e12"], "Give one"),
    "vocabulary": (["--vocab-size", "60000"], "--vocab-size 60000 is more than the text gives"),
    "run name": (["--run", "a/b"], "cannot name a folder"),
    "packing": (["--packing", "tight"], "Choose bestfit or flat"),
    "worker range": (["--num-workers", "4:2"], "is empty"),
    "unknown protocol": (["--data", "warp://bucket/x"], "unknown protocol"),
    "no money": (["--max-cost", "0"], "--max-cost 0 pays for nothing"),
}


@pytest.fixture(scope="module")
def ray_connection(ray_cluster: Cluster) -> Iterator[None]:
    with connected(ray_cluster):
        yield


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_connection", "logging_as_before")
@pytest.mark.parametrize("case", list(BAD_INPUT))
def test_wrong_input_gets_one_sentence_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: str,
):
    flags, sentence = BAD_INPUT[case]
    (tmp_path / "empty").mkdir()
    for name in ("broken", "numbers"):
        (tmp_path / name).mkdir()
    small_corpus(tmp_path / "broken")
    good = (tmp_path / "broken" / "text.parquet").read_bytes()
    (tmp_path / "broken" / "bad.parquet").write_bytes(good[: len(good) // 2])
    pq.write_table(pa.table({"text": [1, 2, 3]}), tmp_path / "numbers" / "n.parquet")
    data = ["--data", small_corpus(tmp_path / "data"), "--num-steps", 10]
    given = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]

    command = ["pretrain.py", "--run", "r", "--storage", tmp_path / "runs", *TINY, *data, *given]
    monkeypatch.setattr("sys.argv", list(map(str, command)))

    # In this process: a new one would take four seconds to import torch and Ray.
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "jobs" / "pretrain.py"), run_name="__main__")

    said = capfd.readouterr()
    output = said.out + said.err
    assert ended.value.code == 2, output
    assert sentence in re.sub(r"\s+", " ", output.replace("│", " "))
    assert "Traceback" not in output
    assert not (tmp_path / "runs" / "r").exists()


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_connection", "logging_as_before")
def test_text_that_cannot_be_read_moves_no_earlier_run_aside_and_leaves_no_tokenizer(
    tmp_path: Path,
):
    shard = small_corpus(tmp_path / "data")
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.seek(size * 3 // 5)
        file.write(bytes(4096))
    tokenizer = tiny_tokenizer()
    save_tokenizer(tokenizer, str(tmp_path / "tokenizer.json"))
    config = PretrainConfig(
        run="new",
        data=str(tmp_path / "data"),
        tokenizer=str(tmp_path / "tokenizer.json"),
        depth=1,
        head_dim=32,
        max_seq_len=64,
        total_batch_tokens=1024,
        device_batch_size=2,
        num_steps=10,
    )
    earlier = RunFolder(str(tmp_path / "runs"), "earlier").stage("pretrain")
    earlier.write_config({"seed": 1})
    earlier.run.mark_done("pretrain")

    for one in (config, dataclasses.replace(config, run="earlier", fresh=True)):
        with pytest.raises(DataError, match=r"text\.parquet cannot be read"):
            prepare(one, str(tmp_path / "runs"))

    assert not (tmp_path / "runs" / "new").exists()
    assert earlier.run.is_done("pretrain")
    assert [path.name for path in (tmp_path / "runs" / "earlier").iterdir()].count("pretrain") == 1
    assert not (tmp_path / "runs" / "earlier" / "tokenizer.json").exists()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_bad_shard_is_left_out_if_the_user_says_so(ray_cluster: Cluster, tmp_path: Path):
    good = small_corpus(tmp_path / "data")
    half = good.read_bytes()[: good.stat().st_size // 2]
    (tmp_path / "data" / "another.parquet").write_bytes(half)

    code, output = run_job(
        "pretrain.py",
        *("--run", "r", "--storage", tmp_path, "--data", tmp_path / "data", "--num-steps", 3),
        *(*TINY, "--skip-bad-shards"),
        env=ray_cluster.environment(),
    )

    assert code == 0, output
    assert output.count("skipped a shard") == 1
    assert "another.parquet" in output


@pytest.mark.slow
@pytest.mark.cluster
def test_documents_that_are_empty_null_huge_or_no_utf8_do_not_stop_a_run(
    ray_cluster: Cluster, tmp_path: Path
):
    ordinary = [f"document {number} says a few plain words " * 20 for number in range(200)]
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\5\0\0\0"), pa.py_buffer(b"ab\xff\xfed")]
    )
    texts = pa.chunked_array(
        [pa.array([*ordinary, "", None, "x" * 10_000_000]), broken, pa.array(ordinary)]
    )
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "data" / "a.parquet", row_group_size=50)

    code, output = run_job(
        "pretrain.py",
        *("--run", "r", "--storage", tmp_path, "--data", tmp_path / "data"),
        *(*TINY, "--vocab-size", 300, "--num-steps", 12),
        env=ray_cluster.environment(),
    )

    assert code == 0, output


@pytest.mark.parametrize(
    ("training", "validation", "which"),
    [
        (["a short text"], ["long enough " * 50], "of the training part"),
        (["long enough " * 50], ["a short text"], "for validation"),
    ],
)
def test_files_too_short_for_a_row_are_told(
    tmp_path: Path, training: list[str], validation: list[str], which: str
) -> None:
    for number in range(5):
        write_shard(tmp_path / f"{number}.parquet", training if number < 4 else validation)
    manifest = make_manifest(str(tmp_path), "text")

    with pytest.raises(DataError, match=f"the files {which} are too short, each by itself"):
        check_gives_rows(plan_over(manifest, 256))
    check_gives_rows(plan_over(manifest, 8))


def test_a_run_that_reads_its_text_often_is_told_of_more_text():
    told = told_of_repetition(21_661.4, 19.66e6)

    assert told.startswith("the run reads its 19.7 MB of text 21,661 times")
    assert "--data fineweb-edu" in told


def plan_over(manifest: Manifest, T: int) -> DataPlan:
    return DataPlan(manifest, Tokenizer([]), max_seq_len=T, packing="bestfit", seed=0)
