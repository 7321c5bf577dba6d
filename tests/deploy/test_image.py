"""The image: its Dockerfile, what is sent to build it, and what is installed in it."""

import fnmatch
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LOCK = ROOT / "deploy" / "requirements.lock"
MOST_CONTEXT_BYTES = 20e6


def lint(dockerfile: Path) -> str:
    """Give what hadolint says of a Dockerfile."""
    return subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True).stdout


def instructions(text: str) -> list[list[str]]:
    """Split a Dockerfile into its instructions, each into words."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [shlex.split(line) for line in joined.splitlines() if line.strip()]


def dockerfile_problems(text: str) -> list[str]:
    """Check who runs in the image, where, and how packages come into it."""
    found = []
    words = instructions(text)
    last_user = [word for kind, *word in words if kind == "USER"][-1:]
    if last_user != [["1000:1000"]]:
        found.append("the image runs as root")
    installs = [line for line in words if "pip" in line]
    if not installs or any("--require-hashes" not in line for line in installs):
        found.append("packages are installed without hashes")
    if ["WORKDIR", "/home/nanoray/nanoray"] not in words:
        found.append("Ray does not start in the project's folder")
    if "RAY_AUTH_MODE=token" not in text:
        found.append("the image does not ask for tokens")
    if any(kind in ("ADD", "ONBUILD") or "curl" in line for kind, *line in words):
        found.append("something unpinned is fetched")
    return found


def test_hadolint_finds_nothing():
    assert lint(ROOT / "deploy" / "Dockerfile") == ""


def test_hadolint_finds_a_planted_mistake(tmp_path: Path):
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM python\nRUN pip install ray\nUSER root\n")

    said = lint(dockerfile)

    assert "DL3006" in said  # no version of the base
    assert "DL3002" in said  # the last user is root


def test_the_image_is_not_root_and_pinned():
    assert dockerfile_problems((ROOT / "deploy" / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("USER 1000:1000", "USER root", "the image runs as root"),
        ("--require-hashes ", "", "packages are installed without hashes"),
        ("WORKDIR /home/nanoray/nanoray", "", "Ray does not start in the project's folder"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "the image does not ask for tokens"),
    ],
)
def test_a_planted_mistake_is_found(old: str, new: str, expected: str):
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert old in text

    assert expected in dockerfile_problems(text.replace(old, new))


def is_sent(path: str) -> bool:
    """Say whether .dockerignore lets a file into the build; the last rule that fits decides."""
    sent = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        begins = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        names = parts if rule.startswith("**/") else begins
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            sent = rule.startswith("!")
    return sent


def test_only_what_is_copied_is_sent_to_the_build():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [name for kind, *names in instructions(text) if kind == "COPY" for name in names[:-1]]

    sent = [path for path in tracked if is_sent(path)]

    for name in copied:
        assert any(path == name or path.startswith(f"{name}/") for path in sent), name
    assert {path.split("/")[0] for path in sent} == {name.split("/")[0] for name in copied}
    assert sum((ROOT / path).stat().st_size for path in sent) < MOST_CONTEXT_BYTES


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "runs/demo/run.json", ".env", "auth_token", "wandb/key",
     "tests/support.py", "nanoray/__pycache__/config.pyc", "deploy/kuberay/cluster.yaml"],
)  # fmt: skip
def test_what_may_hold_secrets_stays_at_home(path: str):
    assert not is_sent(path)


def locked() -> dict[str, str]:
    """Read the lock file: versions by name."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def lock_problems(text: str) -> list[str]:
    """List the lines of a lock file that are not one version with its hashes."""
    entries = re.sub(r"\\\n", " ", text).splitlines()
    entry = re.compile(r"[A-Za-z0-9._-]+==[^\s+]+( +--hash=sha256:[0-9a-f]{64})+")
    return [
        line.split()[0]
        for line in entries
        if line.strip() and not line.startswith("#") and not entry.fullmatch(line.rstrip())
    ]


def test_every_package_of_the_lock_file_has_hashes():
    assert lock_problems(LOCK.read_text()) == []
    assert len(locked()) > 100


@pytest.mark.parametrize(
    "line",
    [
        "ray==2.60.0",
        "ray>=2.60 --hash=sha256:" + "0" * 64,
        "torch==2.13.0+cpu --hash=sha256:" + "0" * 64,
        "--index-url https://example.com",
        "nanoray @ file:///home/me/nanoray",
    ],
)
def test_an_entry_without_version_and_hash_is_found(line: str):
    assert lock_problems(f"{line}\n") == [line.split()[0]]


def test_the_lock_file_holds_what_the_project_needs_in_its_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["s3"], *extras["gcs"]]

    pins = locked()

    for requirement in map(Requirement, needed):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])
    assert {"boto3", "google-api-python-client"} <= set(pins)  # the launcher's own, on a head


def test_whatever_is_locked_is_pinned_for_pip_too():
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines}

    assert set(locked()) - pinned == set()
    assert {"pip", "setuptools"} <= pinned  # what installs, and what builds


def test_the_lock_file_and_the_constraints_agree():
    constraints = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]
    )
    pins = locked()

    differing = {
        name: (version, pins[canonicalize_name(name)])
        for name, version in constraints.items()
        if pins.get(canonicalize_name(name), version) != version
    }

    assert differing == {}


def test_torch_is_the_build_with_cuda():
    assert {"torch", "triton", "nvidia-nccl-cu13"} <= set(locked())
