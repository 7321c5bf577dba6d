"""What the documents say, done by a reader: every command that one machine can run."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.documented import split_assignments
from tests.deploy.story import CLIENTS, SERVERS, STORY, SUBMITTED, Step
from tests.evals.local_hub import local_hub
from tests.evals.model_folder import write_model_folder
from tests.evals.small_bundle import write_bundle
from tests.heads import Head, running_head
from tests.running import free_ports

OWN = (
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'
)
READY_SECONDS = 180


class Reader:
    """Somebody who has started a head in the checkout, and types what the documents say."""

    def __init__(self, head: Head, folder: Path) -> None:
        self.head = head
        [port] = free_ports(1)
        self.names = {
            "FOLDER": str(head.folder / "data"),
            "data": str(head.folder / "data"),
            "bundle": str(write_bundle(folder / "bundle")),
            "hub": local_hub(),
            "model": str(write_model_folder(folder / "model")),
            "port": str(port),
            "url": f"http://127.0.0.1:{port}",
        }
        (head.folder / "own.jsonl").write_text(OWN * 8)
        self.env = {**head.env, "RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "token"}
        self.surprises: list[str] = []
        """What went otherwise than it should; the reader goes on all the same."""

    def does(self, step: Step, **env: str) -> None:
        """Type one command, and wait for its end."""
        words = step.words(self.names)
        began = time.monotonic()
        done = subprocess.run(
            words,
            cwd=self.head.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        said = done.stdout + done.stderr
        print(f"{time.monotonic() - began:6.1f} s  {step.command}", flush=True)
        if done.returncode or step.tells not in said or "Traceback" in said:
            self.surprises.append(f"{shlex.join(words)}: exit code {done.returncode}\n{said}")
            print(self.surprises[-1], flush=True)

    @contextmanager
    def keeps_running(self, step: Step, log: Path) -> Iterator[None]:
        """Type a command that goes on until Ctrl-C, and wait until the server answers."""
        assigned, words = split_assignments(step.words(self.names))
        with log.open("w") as target:
            process = subprocess.Popen(
                words,
                cwd=self.head.folder,
                env={**self.env, **assigned},
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not answers(f"{self.names['url']}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
            yield
            process.send_signal(signal.SIGINT)
            process.wait(timeout=90)
            assert "Traceback" not in log.read_text()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    """Say whether a server gives 200."""
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(5400)
def test_every_documented_command_does_what_its_reader_expects(tmp_path: Path) -> None:
    with running_head("--num-cpus", 4, start_in="checkout") as head:
        reader = Reader(head, tmp_path)
        for step in STORY:
            reader.does(step)
        for step in SUBMITTED:
            reader.does(step, RAY_ADDRESS=head.url)
        for number, server in enumerate(SERVERS):
            with reader.keeps_running(server, tmp_path / f"server{number}.log"):
                url = f"{reader.names['url']}/v1/models"
                needs_key = server.command.startswith("NANORAY_API_KEYS")
                assert httpx.get(url, trust_env=False).status_code == (401 if needs_key else 200)
                for client in CLIENTS:
                    reader.does(client, **({"NANORAY_API_KEYS": "second-key"} if needs_key else {}))

    assert not reader.surprises, "\n\n".join(reader.surprises)
