"""Storage that fails is told in one sentence; a fault of ours keeps its traceback."""

import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from botocore.exceptions import EndpointConnectionError

from nanoray.config import StorageError
from nanoray.storage import open_location
from nanoray.storage_errors import describe, sentence_of, told_in_a_sentence

JOB = """
from dataclasses import dataclass

from nanoray.config import run_job
from nanoray.storage import open_location

@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    address: str = ""

def read(config):
    fs, path = open_location(config.address)
    return fs.cat_file(path)

run_job(ReadConfig, read)
"""


def nobody() -> str:
    """Give an address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def error_of_reading(address: str) -> Exception:
    fs, path = open_location(address)
    try:
        fs.cat_file(path)
    except Exception as error:
        return error
    raise AssertionError(f"{address} was read")


@pytest.fixture
def no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take all ways to credentials of AWS away, the machine's role included."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def run(tmp_path: Path, address: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "read.py"
    file.write_text(JOB)
    command = [sys.executable, str(file), "--address", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_storage_without_credentials_ends_a_job_with_one_sentence(tmp_path, no_keys):
    done = run(tmp_path, "s3://nobucket-x/y")

    assert done.returncode == 1
    assert done.stderr.startswith("error: The storage cannot be used (NoCredentialsError: ")
    assert done.stderr.count("\n") == 1


def test_a_file_of_this_machine_that_cannot_be_read_keeps_its_traceback(tmp_path):
    done = run(tmp_path, str(tmp_path))

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "IsADirectoryError" in done.stderr


def test_only_what_came_through_the_storage_is_an_error_of_storage(tmp_path):
    host = nobody()
    assert "127.0.0.1" in str(sentence_of(error_of_reading(f"{host}/x")))

    elsewhere: Exception
    for elsewhere in (
        aiohttp.ClientConnectionError("of a benchmark"),
        error_of_reading(str(tmp_path / "none")),
        error_of_reading("memory://none"),
        ZeroDivisionError(),
    ):
        assert sentence_of(elsewhere) is None


def test_outages_become_errors_that_name_the_place():
    for error in (OSError(5, "gone"), EndpointConnectionError(endpoint_url="https://me:pw@h")):
        with pytest.raises(StorageError, match=r"^s3://b cannot be used \(\w+: ") as caught:  # noqa: SIM117
            with told_in_a_sentence("s3://b"):
                raise error
        assert "pw" not in str(caught.value)


@pytest.mark.parametrize("error", [BrokenPipeError(), ZeroDivisionError()])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)), told_in_a_sentence("s3://b"):
        raise error


def test_an_error_is_described_in_a_line():
    assert describe(ValueError("no name:\n  b!")) == "ValueError: no name: b!"
    assert describe(TimeoutError()) == "TimeoutError"
