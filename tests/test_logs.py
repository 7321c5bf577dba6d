"""Log lines for people and for machines; that jobs write them: tests/test_config.py."""

import datetime
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanoray.config import InputError
from nanoray.logs import FORMAT_VARIABLE, JsonFormatter, TextFormatter, are_json, json_line
from tests.running import ROOT, Cluster

WORKER = """
import logging
import os
import ray
from nanoray.cluster import connection
from nanoray.logs import log_to_stderr

@ray.remote(num_cpus=0)
def work():
    logging.getLogger("nanoray.somewhere").warning("worked")
    return os.readlink("/proc/self/fd/2")

log_to_stderr()
connection.connect()
print(ray.get(work.remote()))
logging.getLogger("nanoray.driver").info("asked once")
"""


def record_of_an_error() -> logging.LogRecord:
    """Make what a warning with a traceback hands to a formatter, with secrets in both."""
    try:
        raise ValueError("https://me:sentinel@host is away")
    except ValueError as error:
        text = '%s: "%s"'
        record = logging.LogRecord("a", 30, "a.py", 1, text, ("s3://a:sentinel@b", "é\n"), None)
        record.exc_info = (type(error), error, error.__traceback__)
        return record


def test_a_line_for_people_and_its_traceback_have_no_secrets() -> None:
    line = TextFormatter().format(record_of_an_error())

    assert line[8:].startswith(' s3://***@b: "é\n"\n')
    assert "https://***@host is away" in line
    assert "sentinel" not in line


def test_a_line_of_json_says_when_how_bad_who_and_what_without_secrets() -> None:
    record = record_of_an_error()

    line = JsonFormatter().format(record)

    assert "\n" not in line
    assert "sentinel" not in line
    told = json.loads(line)
    assert told["message"] == 's3://***@b: "é\n"'
    assert (told["level"], told["logger"]) == ("WARNING", "a")
    assert told["traceback"].splitlines()[-1] == "ValueError: https://***@host is away"
    when = datetime.datetime.fromisoformat(told["time"])
    assert when.utcoffset() == datetime.timedelta(0)
    assert when.timestamp() == pytest.approx(record.created, abs=0.002)


def test_a_line_without_an_error_has_no_traceback() -> None:
    told = json.loads(json_line("INFO", "nanoray", "saved step 3", seconds=0.25))

    assert told == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "nanoray",
        "message": "saved step 3",
    }


@pytest.mark.parametrize(("given", "json_"), [(None, False), ("text", False), ("json", True)])
def test_the_environment_says_which_format(
    monkeypatch: pytest.MonkeyPatch, given: str | None, json_: bool
) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(FORMAT_VARIABLE, given)

    assert are_json() is json_


def test_another_format_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "xml")

    with pytest.raises(InputError) as refused:
        are_json()

    assert str(refused.value) == "NANORAY_LOG_FORMAT=xml is unknown. Choose text or json."


@pytest.mark.cluster
def test_workers_write_json_where_the_job_does(ray_cluster: Cluster) -> None:
    env = {**os.environ, **ray_cluster.environment(), "RAY_AUTH_MODE": "token"}

    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        env={**env, FORMAT_VARIABLE: "json"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    lines = Path(done.stdout.strip()).read_text().splitlines()
    (worked,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert (worked["levelname"], worked["message"]) == ("WARNING", "worked")
    assert worked["name"] == "nanoray.somewhere"
    own = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert own == ["asked once"]
