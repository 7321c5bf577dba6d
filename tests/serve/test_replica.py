"""One replica of a model, in this process: its health, and newer weights."""

import asyncio
import os
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nanoray.serve.deployment import ChatModel
from nanoray.serve.serve_config import ServeConfig
from nanoray.storage import RunFolder
from nanoray.train.checkpoint_name import SavedModel, find_model
from tests.chat_run import build, save_chat_run, tokenizer
from tests.saved_model import save_model


@pytest.fixture(autouse=True)
def _keeps_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the priority of this process, which a replica would lower, as it is."""
    monkeypatch.setattr(os, "nice", lambda _: 0)


def test_a_replica_whose_engine_is_stuck_or_has_failed_is_not_healthy(tmp_path: Path) -> None:
    save_chat_run(tmp_path)
    config = ServeConfig(run="chat", dtype="float32", stuck_seconds=0.2, poll_seconds=60)
    replica = ChatModel(str(tmp_path), "chat@10", config, 1)
    healthy = check(replica)
    resume = threading.Event()

    replica.engine._wish(partial(wait_for, resume))
    time.sleep(0.5)
    stuck = check(replica)
    resume.set()
    replica.engine._wish(lambda: [][0])
    time.sleep(0.5)
    failed = check(replica)

    assert healthy == ""
    assert "has made no step for" in stuck
    assert "IndexError" in failed


def test_weights_trained_anew_are_taken_up_at_the_same_step_and_no_earlier_stage_is(
    tmp_path: Path,
) -> None:
    save_chat_run(tmp_path)
    config = ServeConfig(run="chat", dtype="float32", poll_seconds=60)
    replica = ChatModel(str(tmp_path), "chat", config, 1)
    first = replica.saved_hash

    shutil.rmtree(tmp_path / "chat/sft")
    run = RunFolder(str(tmp_path), "chat")
    run.forget_stage("sft")
    save_model(run.stage("pretrain"), build(), tokenizer(), (20,))
    replica._take_up(find_model(str(tmp_path), "chat"))
    earlier = replica.saved.name
    save_chat_run(tmp_path, forgetful=True)
    replica._take_up(find_model(str(tmp_path), "chat/sft"))

    assert earlier == "chat/sft@10"
    assert replica.saved.name == "chat/sft@10"
    assert replica.saved_hash != first


class Fleeting(SavedModel):
    """A checkpoint that is deleted as soon as its weights have been read."""

    def weights(self) -> Any:
        weights = super().weights()
        shutil.rmtree(Path(self.folder.run.storage) / "chat/sft/checkpoints")
        return weights


def test_a_step_that_is_deleted_while_it_is_taken_up_is_named_all_the_same(tmp_path: Path) -> None:
    stage = RunFolder(str(tmp_path), "chat").stage("sft")
    save_model(stage, build(), tokenizer(), (10, 20))
    config = ServeConfig(run="chat", dtype="float32", poll_seconds=60)
    replica = ChatModel(str(tmp_path), "chat@10", config, 1)

    replica._take_up(Fleeting(stage, 20))

    assert replica.checkpoint() == "chat/sft@20"


def wait_for(event: threading.Event) -> None:
    """Hold whoever calls this until the event."""
    event.wait()


def check(replica: ChatModel) -> str:
    """Ask a replica for its health; gives what is wrong."""
    try:
        asyncio.run(replica.check_health())
    except RuntimeError as error:
        return str(error)
    return ""
