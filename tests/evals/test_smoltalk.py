from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.smoltalk import SmolTalk
from nanoray.config import DataError
from nanoray.text.chat import render, render_for_completion
from tests.support import tiny_tokenizer


def conversation(number: int, *, system: bool) -> list[dict[str, str]]:
    """Make a conversation as the dataset has it: content first, and then the role."""
    turns = [("system", f"You count to {number}.")] if system else []
    turns += [("user", f"Count {number}."), ("assistant", "I do."), ("user", "And?")]
    turns += [("assistant", f"{number}!")]
    return [{"content": content, "role": role} for role, content in turns]


def write_smoltalk(folder: Path, conversations: list[Any]) -> str:
    """Write conversations as the train split of a hub in a folder."""
    file = folder / "HuggingFaceTB/smol-smoltalk/default/train.parquet"
    file.parent.mkdir(parents=True)
    table = pa.table({"messages": conversations, "source": ["x"] * len(conversations)})
    pq.write_table(table, file, row_group_size=3)
    return str(folder)


@pytest.fixture
def hub(tmp_path: Path) -> str:
    return write_smoltalk(tmp_path, [conversation(i, system=i % 2 == 0) for i in range(10)])


def test_conversations_are_in_the_order_of_nanochat(hub: str) -> None:
    lessons = SmolTalk("train", hub)
    order = np.random.default_rng(42).permutation(10)

    last = [lessons.example(index).messages[-1]["content"] for index in range(len(lessons))]

    assert (lessons.name, len(lessons)) == ("SmolTalk", 10)
    assert last == [f"{number}!" for number in order]


def test_a_system_message_stays_where_it_is(hub: str) -> None:
    lessons = SmolTalk("train", hub)

    roles = {
        tuple(message["role"] for message in lessons.example(index).messages) for index in range(10)
    }

    turns = ("user", "assistant", "user", "assistant")
    assert roles == {turns, ("system", *turns)}


def test_every_conversation_renders(hub: str) -> None:
    lessons = SmolTalk("train", hub)

    for index in range(len(lessons)):
        messages = lessons.example(index).messages
        ids, mask = render(messages, tiny_tokenizer())
        start = len(render_for_completion(messages, tiny_tokenizer()))
        # Both answers are learned, and the last of them ends the conversation.
        assert any(mask[:start])
        assert all(mask[start:])
        assert len(ids) == len(mask)


def test_conversations_end_where_they_are_counted(hub: str) -> None:
    lessons = SmolTalk("train", hub)

    with pytest.raises(IndexError):
        lessons.example(10)


def test_a_split_that_is_not_there_is_named(hub: str) -> None:
    with pytest.raises(DataError, match=r"default/test\.parquet is missing"):
        SmolTalk("test", hub)


def test_messages_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not lists of structs with role and content"):
        SmolTalk("train", write_smoltalk(tmp_path, [[{"role": "user"}]] * 10))


def test_rows_without_messages_are_refused(tmp_path: Path) -> None:
    rows = [conversation(1, system=False), None]

    with pytest.raises(DataError, match="has rows without messages"):
        SmolTalk("train", write_smoltalk(tmp_path, rows))
