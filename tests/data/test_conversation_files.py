import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import NoCredentialsError

from nanoray.config import DataError, StorageError
from nanoray.data.conversation_files import ConversationFiles, find_conversations
from nanoray.storage import open_location
from nanoray.text.chat import render
from tests.data.shards import raw_strings
from tests.support import tiny_tokenizer


def messages(text: str) -> list[dict[str, Any]]:
    """Make a conversation of two turns."""
    return [{"role": "user", "content": text}, {"role": "assistant", "content": f"{text}!"}]


def write_lines(file: Path, lines: list[Any]) -> Path:
    """Write values as JSON, one a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return file


def texts(found: ConversationFiles) -> list[str]:
    """Give what the users say."""
    return [found.example(index).messages[0]["content"] for index in range(len(found))]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/chats", recursive=True)


def test_a_line_is_an_object_with_messages_or_their_list(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", [{"messages": messages("é")}, messages("b")])

    found = find_conversations(str(file))

    assert (found.name, len(found)) == ("a.jsonl", 2)
    assert [found.example(index).messages for index in range(2)] == [messages("é"), messages("b")]


def test_rows_of_parquet_are_conversations(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "messages": [messages("a"), messages("b")]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1)

    found = find_conversations(str(tmp_path / "a.parquet"))

    assert [found.example(index).messages for index in range(2)] == [messages("a"), messages("b")]
    assert found.where(1) == "a.parquet row 2"


def test_a_folder_has_the_files_in_it_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    write_lines(folder / "b.jsonl", [messages("b1"), messages("b2")])
    write_lines(folder / "c/d.jsonl", [messages("d")])
    write_lines(folder / "empty.jsonl", [])
    write_lines(folder / "notes.json", [1])
    pq.write_table(pa.table({"messages": [messages("a")]}), folder / "a.parquet")

    found = find_conversations(str(folder))

    assert texts(found) == ["a", "b1", "b2", "d"]
    assert found.name == "chats"
    assert [found.where(index) for index in range(4)] == [
        "a.parquet row 1",
        "b.jsonl line 1",
        "b.jsonl line 2",
        "c/d.jsonl line 1",
    ]


def test_endings_may_be_written_large(tmp_path: Path) -> None:
    write_lines(tmp_path / "A.JSONL", [messages("a")])
    pq.write_table(pa.table({"messages": [messages("b")]}), tmp_path / "B.Parquet")

    assert texts(find_conversations(str(tmp_path))) == ["a", "b"]


def test_a_glob_picks_files(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b"):
        write_lines(tmp_path / f"{name}.jsonl", [messages(name)])

    found = find_conversations(f"{tmp_path}/a*")

    assert texts(found) == ["a1", "a2"]
    assert found.where(1) == "a2.jsonl line 1"


def test_files_of_another_storage_are_read(memory: fsspec.AbstractFileSystem) -> None:
    lines = "\n".join(json.dumps(messages(text)) for text in ("a", "b"))
    memory.pipe_file("/chats/a.jsonl", f"\n{lines}".encode())
    with memory.open("/chats/b.parquet", "wb") as file:
        pq.write_table(pa.table({"messages": [messages("c")]}), file)

    found = find_conversations("memory://chats")

    assert texts(found) == ["a", "b", "c"]
    assert found.where(1) == "a.jsonl line 3"


def test_empty_lines_are_no_conversations_and_are_counted_as_lines(tmp_path: Path) -> None:
    text = f"\n{json.dumps(messages('a'))}\r\n  \n{json.dumps(messages('b'))}"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.lstrip().encode())

    found = find_conversations(str(tmp_path / "a.jsonl"))

    assert texts(found) == ["a", "b"]
    assert found.where(1) == "a.jsonl line 3"


def test_an_answer_may_be_a_list_of_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "It is "}, {"type": "python", "text": "1+1"}]
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": parts}]
    file = write_lines(tmp_path / "a.jsonl", [chat])

    found = find_conversations(str(file))

    ids, mask = render(found.example(0).messages, tiny_tokenizer())
    assert len(ids) == len(mask)
    assert found.example(0).messages[1]["content"] == parts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{'messages': []}", "is not JSON"),
        (b'[{"role": "user"', "is not JSON"),
        (b'["\xff"]', "is not JSON"),
        (b'{"text": "hello"}', r'has no list of messages, and is {"text": "hello"}\.'),
        (b"17", r"has no list of messages, and is 17\."),
        (b'{"messages": "hello"}', "has no list of messages"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(messages("a")).encode()
    (tmp_path / "a.jsonl").write_bytes(good + b"\n" + line + b"\n" + good)
    found = find_conversations(str(tmp_path))

    with pytest.raises(DataError, match=rf"a\.jsonl line 2 {reason}.* Write one conversation a l"):
        found.example(1)
    assert found.example(2).messages == messages("a")


def test_a_row_without_messages_is_named(tmp_path: Path) -> None:
    table = pa.table({"messages": [messages("a"), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = find_conversations(str(tmp_path))

    with pytest.raises(DataError, match=r"a\.parquet row 2 has no messages"):
        found.example(1)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"text": ["a"]}, "has no column 'messages'; it has text"),
        ({"messages": ["a"]}, "holds string in column 'messages'"),
        ({"messages": [["a"]]}, "in column 'messages'. Store lists of structs"),
    ],
)
def test_parquet_of_another_kind_is_refused(
    tmp_path: Path, table: dict[str, Any], reason: str
) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=rf"a\.parquet .*{reason}"):
        find_conversations(str(tmp_path))


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"<html>log in</html>")

    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        find_conversations(str(tmp_path))


def test_a_storage_without_credentials_is_one_sentence(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> bool:
        raise NoCredentialsError

    memory.pipe_file("/chats/a.jsonl", b"")
    monkeypatch.setattr(open_location("memory://chats")[0], "isdir", refuse)

    with pytest.raises(StorageError, match=r"^memory:///chats may not be read \(Unable to locate"):
        find_conversations("memory://chats")


def test_an_address_without_conversations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank.jsonl").write_text("\n\n")

    with pytest.raises(DataError, match=r"nowhere does not exist\. Give a folder, glob or file"):
        find_conversations(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"empty has no file that ends in \.jsonl or \.parquet"):
        find_conversations(str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"blank\.jsonl has no conversation\. Write one"):
        find_conversations(str(tmp_path / "blank.jsonl"))
    with pytest.raises(StorageError, match="unknown protocol"):
        find_conversations("nowhere://chats")


def test_conversations_end_where_they_are_counted(tmp_path: Path) -> None:
    found = find_conversations(str(write_lines(tmp_path / "a.jsonl", [messages("a")])))

    for index in (1, -1):
        with pytest.raises(IndexError, match=f"conversation {index} of 1"):
            found.example(index)


def test_conversations_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [messages("a"), messages("b")])
    pq.write_table(pa.table({"messages": [messages("c")]}), tmp_path / "b.parquet")
    found = find_conversations(str(tmp_path))
    texts(found)

    copy = pickle.loads(pickle.dumps(found))

    assert texts(copy) == ["a", "b", "c"]


def test_a_row_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    texts = raw_strings([b"hi", b"hi \xff"])
    struct = pa.StructArray.from_arrays([pa.array(["user", "user"]), texts], ["role", "content"])
    rows = pa.ListArray.from_arrays([0, 1, 2], struct)
    pq.write_table(pa.table({"messages": rows}), tmp_path / "own.parquet")
    found = find_conversations(str(tmp_path / "own.parquet"))

    assert found.example(0).messages[0]["content"] == "hi"
    with pytest.raises(DataError, match=r"own\.parquet row 2 is not UTF-8"):
        found.example(1)


def test_conversations_behind_a_linked_folder_are_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "chats/a.jsonl", [messages("a")])
    write_lines(tmp_path / "elsewhere/b.jsonl", [messages("b")])
    (tmp_path / "chats/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "chats")

    assert texts(find_conversations(str(tmp_path / "chats"))) == ["a", "b"]


@pytest.mark.parametrize("place", ["own [1].jsonl", "chats [v2]/own.jsonl", "chats [v2]"])
def test_a_name_may_have_the_signs_of_a_glob(tmp_path: Path, place: str) -> None:
    write_lines(tmp_path / "own [1].jsonl", [messages("a")])
    write_lines(tmp_path / "chats [v2]" / "own.jsonl", [messages("a")])

    assert texts(find_conversations(str(tmp_path / place))) == ["a"]


def test_a_folder_that_a_glob_matches_is_no_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [messages("a")])
    (tmp_path / "b.jsonl").mkdir()
    (tmp_path / "c").mkdir()

    assert texts(find_conversations(f"{tmp_path}/*")) == ["a"]
