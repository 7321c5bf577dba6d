"""Midtraining and SFT: the loss of packed rows, resuming, and what a user is told."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from evals.gsm8k import GSM8K
from nanoray.config import InputError, to_json
from nanoray.data.batches import batch_of
from nanoray.data.conversation_files import find_conversations
from nanoray.data.conversations import CUT, UNLEARNABLE, pack_conversations
from nanoray.data.manifest import Manifest, check_unchanged
from nanoray.model.gpt import GPT
from nanoray.stages.finetune import SomeConversations, Split, mixture
from nanoray.stages.finetune_config import COURSES, FinetuneConfig, with_mixture
from nanoray.stages.start import Opened, keep_start, open_later_stage
from nanoray.storage import RunFolder, write_json
from nanoray.task import Lessons
from nanoray.text.chat import render
from tests.evals.local_hub import SHARED_DATA, existing, local_hub
from tests.running import Cluster, kill_a_worker, kill_job, read_run, run_job, start_job
from tests.running import wait_for_step as wait
from tests.stages.chats import FLAGS, save_base, write_chats
from tests.support import tiny_gpt, tiny_tokenizer


def double_gpt(max_seq_len: int) -> GPT:
    model = tiny_gpt(vocab_size=tiny_tokenizer().vocab_size, max_seq_len=max_seq_len).double()
    model.compute_dtype = torch.float64
    return model.requires_grad_(False)


def reference_loss(model: GPT, conversations: list[Any], row_len: int) -> tuple[float, int]:
    """Sum the loss of one conversation at a time by torch's cross entropy, in float64."""
    total, count = 0.0, 0
    for messages in conversations:
        ids, mask = render(messages, tiny_tokenizer(), row_len)
        if not any(mask[1:]):
            continue
        logits = model.unembedding(model.hidden(torch.tensor([ids[:-1]])))[0]
        capped = model.config.softcap * torch.tanh(logits / model.config.softcap)
        losses = F.cross_entropy(capped, torch.tensor(ids[1:]), reduction="none")
        total += float((losses * torch.tensor(mask[1:])).sum())
        count += sum(mask[1:])
    return total, count


def check_loss(lessons: Lessons, indices: range, T: int) -> dict[str, int]:
    """Compare the loss of packed rows with the reference; gives what packing counted."""
    tokenizer, model = tiny_tokenizer(), double_gpt(T)
    conversations = [lessons.example(index).messages for index in indices]
    documents = [json.dumps(list(messages)) for messages in conversations]
    unit = pack_conversations(documents, tokenizer, row_len=T + 1, learn="assistant")

    total, count = 0.0, 0
    for rows in torch.from_numpy(unit.rows).split(4):
        batch = batch_of(rows, tokenizer.bos_id)
        total += model.loss_sum(batch.inputs, batch.targets, texts=batch.texts).item()
        count += int((batch.targets >= 0).sum())

    expected, expected_count = reference_loss(model, conversations, T + 1)
    assert count == expected_count
    # The soft cap and the sums of the loss are fp32.
    assert total == pytest.approx(expected, rel=1e-5)
    assert len(unit.rows) < len(conversations)
    return dict(unit.counts)


def test_the_loss_on_chitchat_is_that_of_one_conversation_at_a_time() -> None:
    lessons = find_conversations(str(existing(SHARED_DATA / "hub/chitchat/train.parquet")))

    counts = check_loss(lessons, range(60), T=512)

    assert counts[UNLEARNABLE] == 0


def test_the_loss_on_gsm8k_with_conversations_cut_and_left_out_is_too() -> None:
    counts = check_loss(GSM8K("train", local_hub()), range(60), T=160)

    assert counts[CUT] > 0
    assert counts[UNLEARNABLE] > 0


def sft(storage: Path, run: str, num_workers: int = 2, steps: int = 40) -> list[object]:
    flags = ["--run", run, "--storage", storage, "--data", storage / "own.jsonl"]
    flags += ["--num-workers", num_workers, "--num-steps", steps, "--save-every", 10]
    return [*flags, "--validate-every", 20, *FLAGS]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.proof), "midtrain"])
def test_a_stage_killed_twice_equals_the_undisturbed_one(
    ray_cluster: Cluster, tmp_path: Path, stage: str
) -> None:
    env = ray_cluster.environment()
    write_chats(tmp_path / "own.jsonl")
    for run in ("calm", "killed"):
        save_base(tmp_path, run)
    code, output = run_job(f"{stage}.py", *sft(tmp_path, "calm"), env=env)
    assert code == 0, output
    # Midtraining learns every token, so none of its conversations is without one.
    assert ("conversations without a token to learn" in output) == (stage == "sft")

    process = start_job(f"{stage}.py", *sft(tmp_path, "killed"), env=env)
    wait(process, tmp_path, "killed", 12, stage=stage)
    kill_a_worker(ray_cluster, random.Random(0))
    wait(process, tmp_path, "killed", 31, stage=stage)
    kill_job(process)
    code, output = run_job(f"{stage}.py", *sft(tmp_path, "killed"), env=env)

    assert code == 0, output
    assert "from the checkpoint of step" in output
    expected = read_run(tmp_path, "calm", stage)
    assert read_run(tmp_path, "killed", stage) == expected
    assert all(loss is not None for _, loss, _ in expected["losses"])
    page = (tmp_path / f"killed/{stage}/report.html").read_text()
    assert "calm/pretrain@10" not in page
    assert "killed/pretrain@10" in page


@pytest.mark.cluster
@pytest.mark.slow
def test_any_number_of_workers_learns_the_same_rows_in_the_same_steps(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    write_chats(tmp_path / "own.jsonl")
    for num_workers in (1, 2, 3):
        save_base(tmp_path, f"w{num_workers}")
        command = sft(tmp_path, f"w{num_workers}", num_workers, steps=20)
        code, output = run_job("midtrain.py", *command, env=ray_cluster.environment())
        assert code == 0, output

    runs = [read_run(tmp_path, f"w{n}", "midtrain") for n in (1, 2, 3)]
    assert len({run["ledger"] for run in runs}) == 1


@pytest.mark.slow
@pytest.mark.cluster
def test_bad_input_of_sft_is_told_in_one_sentence(ray_cluster: Cluster, tmp_path: Path) -> None:
    env = ray_cluster.environment()
    save_base(tmp_path, "r")
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "bot", "content": "x"}]}\n' * 3)

    cases = [
        ((), "error: --run is missing: name the run to go on with"),
        (("--run", "none"), "has no finished stage before sft. Train one with jobs/pretrain.py"),
        (("--run", "r", "--data", tmp_path / "bad.jsonl"), "error: bad.jsonl line "),
        (("--run", "r", "--mixture", "smalltalk"), "--mixture has 'smalltalk', and there is no"),
    ]
    for flags, said in cases:
        code, output = run_job("sft.py", *flags, "--storage", tmp_path, *FLAGS, env=env)
        assert code == 2, output
        assert said in output


def no_lessons(config: FinetuneConfig, name: str, split: Split, size: int | None) -> Lessons:
    raise AssertionError(f"{name} was not asked for")


def open_mixture(storage: str, data: Path, **fields: Any) -> tuple[FinetuneConfig, Opened]:
    """Decide as much of an SFT stage as its mixture needs."""
    asked = FinetuneConfig(run="r", data=str(data), **fields)
    config, opened = open_later_stage("sft", asked, storage)
    return with_mixture(config, COURSES["sft"]), opened


def mix(storage: str, data: Path, *, fails: bool = False, **fields: Any) -> Manifest:
    """Do what a start does until its mixture is in its place, or it is refused."""
    config, opened = open_mixture(storage, data, **fields)
    with mixture(config, opened, no_lessons) as manifest:
        if fails:
            raise InputError("as of what cannot be counted")
    keep_start(opened)
    folder = opened.folder
    write_json(folder.fs, folder.path("manifest.json"), manifest.to_json())
    folder.write_config(to_json(config))
    return manifest


def learned(storage: Path) -> list[str]:
    column = pq.read_table(storage / "r/sft/mixture/train-00000.parquet")["conversation"]
    return [json.loads(text)[0]["content"] for text in column.to_pylist()]


def test_bad_conversations_do_not_cost_the_stage_that_was_there(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    good, bad = write_chats(tmp_path / "own.jsonl", count=9), tmp_path / "bad.jsonl"
    mix(str(tmp_path), good)
    run = RunFolder(str(tmp_path), "r")
    run.mark_done("sft")
    bad.write_text('{"messages": [{"role": "bot", "content": "x"}]}\n' * 3)

    with pytest.raises(InputError, match=r"bad\.jsonl line"):
        mix(str(tmp_path), bad, fresh=True)
    with pytest.raises(InputError, match="cannot be counted"):
        mix(str(tmp_path), write_chats(tmp_path / "short.jsonl", 4), fails=True, fresh=True)

    assert len(learned(tmp_path)) == 8
    assert "sft" in run.read_state()["stages_done"]
    assert sorted(os.listdir(tmp_path / "r")) == ["pretrain", "run.json", "sft", "tokenizer.json"]
    mix(str(tmp_path), tmp_path / "short.jsonl", fresh=True)
    assert len(learned(tmp_path)) == 3
    assert len(list((tmp_path / "r").glob("sft.before-*/mixture/train-00000.parquet"))) == 1


def test_a_first_start_that_was_refused_leaves_nothing(tmp_path: Path) -> None:
    save_base(tmp_path, "base")
    chats = write_chats(tmp_path / "own.jsonl", count=9)

    with pytest.raises(InputError, match="cannot be counted"):
        mix(str(tmp_path), chats, fails=True, from_="base")

    assert not (tmp_path / "r").exists()
    mix(str(tmp_path), write_chats(tmp_path / "other.jsonl", count=4), from_="base")
    assert len(learned(tmp_path)) == 3


def test_a_start_that_was_killed_before_it_began_is_no_hindrance(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    mix(str(tmp_path), write_chats(tmp_path / "own.jsonl", count=9))
    (tmp_path / "r/sft/config.json").unlink()

    mix(str(tmp_path), write_chats(tmp_path / "other.jsonl", count=4))

    assert len(learned(tmp_path)) == 3


def test_what_was_read_of_the_hub_is_written_down(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    file = tmp_path / "hub/org/set/train.parquet"
    chats = find_conversations(str(write_chats(tmp_path / "own.jsonl", count=9)))
    file.parent.mkdir(parents=True)
    file.write_bytes(b"rows")

    class Read(SomeConversations):
        hub_files = (str(file),)

    asked = FinetuneConfig(run="r", mixture="gsm8k", hub_dir=str(tmp_path / "hub"))
    config, opened = open_later_stage("sft", asked, str(tmp_path))
    config = with_mixture(config, COURSES["sft"])
    with mixture(config, opened, lambda *_: Read(chats, range(9))):
        pass
    keep_start(opened)

    start = json.loads((tmp_path / "r/sft/start.json").read_text())
    mixed = json.loads((tmp_path / "r/sft/mixture/mixture.json").read_text())
    assert list(start["hub"]) == ["org/set/train.parquet"]
    assert mixed["files of --hub-dir"] == start["hub"]


def test_a_mixture_that_was_deleted_is_mixed_again_from_the_same(tmp_path: Path) -> None:
    save_base(tmp_path, "r")
    chats = write_chats(tmp_path / "own.jsonl", count=9)
    first = mix(str(tmp_path), chats)
    shutil.rmtree(tmp_path / "r/sft/mixture")

    again = mix(str(tmp_path), chats)

    assert again.hash == first.hash
    assert len(learned(tmp_path)) == 8


def test_a_mixture_on_an_object_store_is_put_into_its_place(tmp_path: Path) -> None:
    save_base(tmp_path, "base")
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "base"), "/mixed/r", recursive=True)

    manifest = mix("memory://mixed", write_chats(tmp_path / "own.jsonl", count=9))

    names = [path.rpartition("/")[2] for path in fs.find("/mixed/r/sft/mixture")]
    assert names == ["mixture.json", "train-00000.parquet", "validation.parquet"]
    assert not fs.exists("/mixed/r/.sft-mixture")
    assert check_unchanged(manifest, "memory://mixed/r/sft/mixture").hash == manifest.hash
    fs.rm("/mixed", recursive=True)


def test_some_conversations_have_numbers_of_their_own_and_the_places_of_all(
    tmp_path: Path,
) -> None:
    files = find_conversations(str(write_chats(tmp_path / "own.jsonl", count=5)))

    some = SomeConversations(files, [4, 1])

    assert len(some) == 2
    assert some.example(0) == files.example(4)
    assert some.where(1) == "own.jsonl line 2"
