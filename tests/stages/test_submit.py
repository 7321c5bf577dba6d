"""Runs that are submitted to a head with tokens, from a checkout that is not the head's folder."""

import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.heads import Head, running_head
from tests.running import TINY, current_step

pytestmark = pytest.mark.cluster

STEPS = 150


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as head:
        yield head


def submit(
    head: Head, *options: object, run: str = "r", **env: str
) -> "subprocess.CompletedProcess[str]":
    """Submit a run as README.md says."""
    data = ("--data", head.folder / "data", "--num-steps", STEPS, "--save-every", 20)
    command = ("python", "jobs/pretrain.py", "--run", run, *data, *TINY)
    return head.job("submit", "--working-dir", ".", *options, "--", *command, **env)


def wait_for_saved_step(head: Head, run: str) -> None:
    """Wait until a run has made some steps more than its first checkpoint has."""
    deadline = time.monotonic() + 180
    while current_step(head.runs, run) < 30:
        assert time.monotonic() < deadline, head.job("list").stdout
        time.sleep(0.05)


@pytest.mark.slow
def test_a_submitted_run_lands_where_the_head_was_started(head: Head):
    submitted = submit(head, "--submission-id", "whole", run="whole")

    said = submitted.stdout + submitted.stderr
    assert submitted.returncode == 0, said
    assert f"report: {head.runs}/whole/pretrain/report.html" in said
    assert current_step(head.runs, "whole") == STEPS
    assert (head.runs / "whole" / "pretrain" / "report.html").exists()
    assert not (head.checkout / "runs").exists()


@pytest.mark.slow
def test_a_stopped_run_goes_on_when_it_is_submitted_again(head: Head):
    started = submit(head, "--submission-id", "first", "--no-wait", run="stopped")
    assert started.returncode == 0, started.stderr
    wait_for_saved_step(head, "stopped")

    stopped = head.job("stop", "first")
    at = current_step(head.runs, "stopped")
    again = submit(head, "--submission-id", "second", run="stopped")

    assert stopped.returncode == 0, stopped.stderr
    assert at < STEPS, "the run ended before it was stopped"
    assert again.returncode == 0, again.stdout
    assert "from the checkpoint of step" in again.stdout + again.stderr
    assert current_step(head.runs, "stopped") == STEPS


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_without_the_token_nothing_is_submitted(head: Head, token: str):
    mode = "token" if token else "disabled"

    submitted = submit(head, run="refused", RAY_AUTH_TOKEN=token, RAY_AUTH_MODE=mode)

    assert submitted.returncode != 0
    assert "token" in submitted.stdout + submitted.stderr
    assert not (head.runs / "refused").exists()
