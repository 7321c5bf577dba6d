import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.gsm8k import GSM8K
from evals.hub import local_files, read_split, read_table
from nanoray.config import DataError, InputError
from tests.http_server import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "an_org/a_set"
READ = f"""
import json, sys
from evals.hub import read_split, read_table
from nanoray.config import InputError
try:
    print(json.dumps(read_split({REPO!r}, "main", sys.argv[1], None, columns=["number"])))
except InputError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
SHUFFLED = [5, 6, 0, 7, 3, 2, 4, 9, 1, 8]


def write_split(folder: Path, numbers: list[int], name: str = "test") -> Path:
    """Write a split as the local folder has it."""
    file = folder / REPO / "main" / f"{name}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"number": pa.array(numbers, pa.int64()), "other": ["x"] * len(numbers)})
    pq.write_table(table, file)
    return file


@contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[str]:
    """Answer as the hub does for the converted files of one dataset; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            status, body, headers = self.answer(self.path.partition("?")[0])
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
            if path == f"/api/datasets/{REPO}/revision/refs%2Fconvert%2Fparquet":
                return 200, json.dumps({"id": REPO, "sha": COMMIT}).encode(), {}
            if path == f"/api/datasets/{REPO}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in files.items()
                ]
                return 200, json.dumps(tree).encode(), {}
            name = path.removeprefix(f"/datasets/{REPO}/resolve/{COMMIT}/")
            if name in files:
                etag = f'"{name.replace("/", "-")}"'
                return 200, files[name], {"ETag": etag, "X-Repo-Commit": COMMIT}
            return 404, b"", {"X-Error-Code": "EntryNotFound"}

    with serving(Handler) as address:
        yield address


def read_from(endpoint: str, home: Path, split: str = "test") -> str:
    """Read a split in a process of its own: huggingface_hub reads HF_ENDPOINT when imported."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, split],
        env={**os.environ, "HF_HUB_OFFLINE": "0", **variables},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_rows_are_in_the_order_of_nanochat(tmp_path: Path) -> None:
    write_split(tmp_path, list(range(10)))

    rows = read_split(REPO, "main", "test", str(tmp_path), columns=["number"])

    assert rows == [{"number": number} for number in SHUFFLED]


def test_the_hub_gives_all_files_of_a_split_and_its_cache_the_same(tmp_path: Path) -> None:
    first = write_split(tmp_path, list(range(4)), "first").read_bytes()
    second = write_split(tmp_path, list(range(4, 10)), "second").read_bytes()
    files = {
        "main/test/0000.parquet": first,
        "main/test/0001.parquet": second,
        "main/train/0000.parquet": b"not wanted",
    }

    with hub_of(files) as endpoint:
        fetched = read_from(endpoint, tmp_path / "home")
    from_cache = read_from(endpoint, tmp_path / "home")

    assert fetched == from_cache
    assert [row["number"] for row in json.loads(fetched)] == SHUFFLED
    assert not list((tmp_path / "home").rglob("train/*"))


def test_a_hub_without_the_split_is_told_in_a_sentence(tmp_path: Path) -> None:
    with hub_of({"main/test/0000.parquet": b""}) as endpoint:
        answer = read_from(endpoint, tmp_path, "dev")

    assert answer == (
        "DataError: an_org/a_set has no split 'dev' of 'main' on the Hugging Face hub. "
        "Give --hub-dir FOLDER with an_org/a_set/main/dev.parquet."
    )


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(tmp_path: Path) -> None:
    answer = read_from("http://127.0.0.1:9", tmp_path)

    assert answer.startswith(
        "DataError: an_org/a_set (main, test) cannot be fetched from the Hugging Face hub ("
    )
    assert answer.endswith(
        "Try again, or give --hub-dir FOLDER with an_org/a_set/main/test.parquet."
    )
    assert "\n" not in answer


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"

    with pytest.raises(InputError, match=f"--hub-dir {missing} is no folder. Give one with files"):
        read_split(REPO, "main", "test", str(missing), columns=["number"])


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    expected = tmp_path / REPO / "main/test.parquet"

    with pytest.raises(DataError, match=f"{expected} is missing. Put the test split"):
        read_split(REPO, "main", "test", str(tmp_path), columns=["number"])


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    file = write_split(tmp_path, [1])

    with pytest.raises(DataError, match=f"{file} has no column answer; its columns are number, o"):
        read_split(REPO, "main", "test", str(tmp_path), columns=["number", "answer"])


def test_a_missing_field_of_a_column_is_named(tmp_path: Path) -> None:
    file = write_split(tmp_path, [])
    pq.write_table(pa.table({"train": [{"number": 1}]}), file)

    rows = read_split(REPO, "main", "test", str(tmp_path), columns=["train.number"])

    assert rows == [{"train": {"number": 1}}]
    with pytest.raises(DataError, match=r"has no column train\.answer"):
        read_split(REPO, "main", "test", str(tmp_path), columns=["train.number", "train.answer"])


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    file = write_split(tmp_path, [])

    with pytest.raises(DataError, match=f"{file} has no rows. Give a --hub-dir in which"):
        read_split(REPO, "main", "test", str(tmp_path), columns=["number"])


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    file = write_split(tmp_path, [1])
    file.write_bytes(b"<html>log in</html>")

    with pytest.raises(DataError, match=f"{file} cannot be read as parquet"):
        read_split(REPO, "main", "test", str(tmp_path), columns=["number"])


def test_a_table_and_its_order_are_the_rows(tmp_path: Path) -> None:
    write_split(tmp_path, list(range(10)))

    table, order = read_table(REPO, "main", "test", str(tmp_path), columns=["number"])

    assert table["number"].to_pylist() == list(range(10))
    assert order.tolist() == SHUFFLED


def test_a_source_knows_the_file_that_it_was_read_from(tmp_path: Path) -> None:
    file = tmp_path / "openai/gsm8k/main/train.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"question": ["1 + 1?"], "answer": ["#### 2"]}), file)

    assert GSM8K("train", str(tmp_path)).hub_files == (str(file),)
    assert local_files(REPO, "main", "test", None) == ()
