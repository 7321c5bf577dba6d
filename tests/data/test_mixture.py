"""Mixtures: nanochat's order, epochs and limits, and bad conversations named by their place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from nanoray.config import DataError
from nanoray.data.conversation_files import find_conversations
from nanoray.data.manifest import make_manifest
from nanoray.data.mixture import CONVERSATION_COLUMN, Part, mixture_order, write_mixture
from nanoray.data.plan import DataPlan, read_documents, split_units
from nanoray.storage import open_location
from nanoray.task import Example
from tests.support import tiny_tokenizer


class Numbers:
    """Conversations about numbers."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def example(self, index: int) -> Example:
        text = f"{self.name} {index}"
        return Example(
            ({"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"})
        )


def write(folder: Path, *training: Part, skip_bad: bool = False, **facts: Any) -> None:
    fs, path = open_location(str(folder))
    validation = [Part(Numbers("held out", 3))]
    write_mixture(fs, path, training, validation, facts=facts, skip_bad=skip_bad)


def questions(folder: Path, file: str = "train-00000.parquet") -> list[str]:
    column = pq.read_table(folder / file)[CONVERSATION_COLUMN].to_pylist()
    return [json.loads(one)[0]["content"] for one in column]


def test_the_order_is_that_of_nanochat() -> None:
    order = mixture_order([10])

    assert [index for _, index in order] == [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]  # nanochat.md 6.0


def test_all_sources_are_in_one_shuffled_list(tmp_path: Path) -> None:
    write(tmp_path, Part(Numbers("a", 3)), Part(Numbers("b", 7)))

    wanted = [("a", i) for i in range(3)] + [("b", i) for i in range(7)]
    golden = [wanted[i] for i in [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]]
    assert questions(tmp_path) == [f"{name} {index}" for name, index in golden]
    assert questions(tmp_path, "validation.parquet") == [
        f"held out {index}" for _, index in mixture_order([3])
    ]


@pytest.mark.parametrize(
    ("epochs", "limit", "times"),
    [
        (1.0, None, [1, 1, 1, 1]),
        (2.0, None, [2, 2, 2, 2]),
        (1.5, None, [2, 2, 1, 1]),
        (0.5, None, [1, 1, 0, 0]),
        (1.0, 3, [1, 1, 1, 0]),
        (3.0, 1, [3, 0, 0, 0]),
    ],
)
def test_epochs_and_limits_say_how_often_each_example_comes(
    tmp_path: Path, epochs: float, limit: int | None, times: list[int]
) -> None:
    write(tmp_path, Part(Numbers("a", 4), epochs, limit))

    found = questions(tmp_path)
    assert [found.count(f"a {index}") for index in range(4)] == times


def test_a_mixture_is_data_with_a_manifest_and_a_plan(tmp_path: Path) -> None:
    write(tmp_path, Part(Numbers("a", 500)))

    manifest = replace(make_manifest(str(tmp_path), CONVERSATION_COLUMN), unit_bytes=4000)

    training, validation = split_units(manifest)
    texts = [text for unit in training for text in read_documents(manifest, unit)]
    held_out = [text for unit in validation for text in read_documents(manifest, unit)]
    assert [json.loads(text)[0]["content"] for text in texts] == questions(tmp_path)
    assert len(held_out) == 3
    plan = DataPlan(manifest, tiny_tokenizer(), max_seq_len=64, packing="chat-assistant", seed=0)
    assert (plan.pack(0).rows < 0).any()


def test_a_mixture_is_written_in_place_of_another(tmp_path: Path) -> None:
    write(tmp_path, Part(Numbers("a", 4)), training="a")

    write(tmp_path, Part(Numbers("b", 2)), training="b")

    assert sorted(questions(tmp_path)) == ["b 0", "b 1"]
    assert json.loads((tmp_path / "mixture.json").read_text())["training"] == "b"


def test_shards_of_an_interrupted_mixture_are_no_data(tmp_path: Path) -> None:
    write(tmp_path, Part(Numbers("a", 4)))
    (tmp_path / "train-00001.parquet").write_bytes((tmp_path / "train-00000.parquet").read_bytes())
    (tmp_path / "mixture.json").unlink()

    write(tmp_path, Part(Numbers("b", 2)))

    assert len(make_manifest(str(tmp_path), CONVERSATION_COLUMN).shards) == 2


BAD = [
    ('[{"role": "assistant", "content": "a"}]', "Message 0 is of role 'assistant'"),
    ('[{"role": "user", "content": "q"}, {"role": "user", "content": "q"}]', "Message 1 is of ro"),
    ("[]", "needs at least one message"),
    ('[{"role": "user", "content": "  "}]', "Message 0 is empty"),
    ('[{"role": "user", "content": 7}]', "must be text, not 7"),
    ('[{"role": "user", "content": "\\ud800"}]', "half a surrogate pair"),
    ('["hi"]', "Message 0 must have a role and a content"),
    ("[null]", "Message 0 must have a role and a content"),
    ('{"messages": 5}', "has no list of messages"),
    ("{not json", "is not JSON"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_bad_conversation_is_named_by_file_and_line(tmp_path: Path, line: str, said: str) -> None:
    good = json.dumps(Numbers("g", 1).example(0).messages)
    (tmp_path / "own.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    lessons = find_conversations(str(tmp_path / "own.jsonl"))

    with pytest.raises(DataError, match=rf"own\.jsonl line 3:? .*{said}.*--skip-bad-convers"):
        write(tmp_path / "mixture", Part(lessons))


def test_bad_conversations_are_left_out_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = json.dumps(Numbers("g", 1).example(0).messages)
    (tmp_path / "own.jsonl").write_text("\n".join([good, *(line for line, _ in BAD)]))

    write(tmp_path / "m", Part(find_conversations(str(tmp_path / "own.jsonl"))), skip_bad=True)

    assert questions(tmp_path / "m") == ["g 0"]
    assert "skipped 10 bad conversations in all" in caplog.text


def test_a_mixture_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no conversation for train"):
        write(tmp_path, Part(Numbers("a", 0)))


def test_what_is_not_rendered_of_a_part_is_not_kept(tmp_path: Path) -> None:
    part = '{"type": "text", "text": "a", "id": "\\ud800"}'
    (tmp_path / "own.jsonl").write_text(
        f'[{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": [{part}]}}]'
    )

    write(tmp_path / "m", Part(find_conversations(str(tmp_path / "own.jsonl"))))

    [kept] = pq.read_table(tmp_path / "m/train-00000.parquet")[CONVERSATION_COLUMN].to_pylist()
    assert json.loads(kept)[1]["content"] == [{"type": "text", "text": "a"}]


class Broken(Numbers):
    """A source one of whose rows lacks what all others have."""

    def example(self, index: int) -> Example:
        return Example((dict[str, Any]()["messages"],)) if index == 2 else super().example(index)


def test_a_row_that_is_not_like_the_others_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"broken, example 2: The row has not the shape .* \(KeyErr"
    ):
        write(tmp_path / "m", Part(Broken("broken", 4)))

    write(tmp_path / "n", Part(Broken("broken", 4)), skip_bad=True)

    assert sorted(questions(tmp_path / "n")) == ["broken 0", "broken 1", "broken 3"]
