"""`make pretrain` and `make demo` as a newcomer types them; the environment is the one that is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PAGE = "http://127.0.0.1:8000"


def checkout(folder: Path) -> Path:
    """Copy the project, with an environment that `make` need not make."""
    unwanted = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder / "nanoray", ignore=unwanted)
    environment = folder / "nanoray/.venv"
    environment.mkdir()
    (environment / "bin").symlink_to(Path(sys.executable).parent)
    (environment / ".ready").touch()
    return folder / "nanoray"


def make(target: str, folder: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start a target, with all that it says in a file."""
    with log.open("w") as said:
        return subprocess.Popen(
            ["make", target],
            cwd=folder,
            env={**os.environ, "RAY_AUTH_MODE": "token", "BROWSER": "true"},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_make_pretrain_leaves_a_model_and_its_report(tmp_path: Path) -> None:
    folder = checkout(tmp_path)

    code = make("pretrain", folder, tmp_path / "log").wait()

    said = (tmp_path / "log").read_text()
    assert code == 0, said
    assert (folder / "runs/demo/pretrain/report.html").exists()
    assert "Traceback" not in said
    again = make("pretrain", folder, tmp_path / "again").wait()
    assert again == 0
    assert "is finished; --fresh begins it anew" in (tmp_path / "again").read_text()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(10_800)
def test_make_demo_ends_with_a_page_to_chat_on(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    process = make("demo", folder, tmp_path / "log")
    try:
        while not page_is_there():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(5)
        [model] = httpx.get(f"{PAGE}/v1/models", trust_env=False).json()["data"]
        asked = {"model": model["id"], "messages": [{"role": "user", "content": "Who are you?"}]}
        answer = httpx.post(
            f"{PAGE}/v1/chat/completions",
            json={**asked, "temperature": 0, "max_tokens": 64},
            trust_env=False,
            timeout=120,
        )
        assert "nanoray" in answer.json()["choices"][0]["message"]["content"]
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=120)
    assert (folder / "runs/assistant/report.html").exists()


def page_is_there() -> bool:
    """Say whether the server shows its page."""
    try:
        return httpx.get(PAGE, trust_env=False, timeout=5, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False
