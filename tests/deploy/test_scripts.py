"""The shell scripts of deploy/: by shellcheck, and the one for Slurm on a simulated node."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nanoray.cluster.connection import SMALL_MACHINE
from tests.running import ROOT, free_ports

SCRIPTS = sorted((ROOT / "deploy").glob("*.sh"))
SHELLCHECK = Path(sys.executable).parent / "shellcheck"
SRUN = """#!/bin/bash
# Slurm's srun on the only node there is; Ray gets ports that nobody else on this machine has.
while [[ $1 == --* ]]; do shift; done
[ "$1 $2" = "ray start" ] && set -- "$@" {options}
exec "$@"
"""
SCONTROL = "#!/bin/bash\necho node\n"
SUDO = """#!/bin/bash
# Of a machine that updates itself: the lists are locked twice. What follows packages is refused.
[ "$1" = DEBIAN_FRONTEND=noninteractive ] && shift
[ "$1" = apt-get ] || exit 7
echo "$@" >>"$HOME/asked"
[[ $* != *update* ]] || (($(grep -c update "$HOME/asked") > 2)) || exit 100
"""


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.name))
def test_shellcheck_finds_nothing(script: Path):
    checked = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)

    assert checked.stdout == ""
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_shellcheck_finds_a_planted_mistake(tmp_path: Path):
    script = tmp_path / "planted.sh"
    script.write_text("#!/bin/bash\nrm -rf $1/*\n")

    assert "SC2086" in subprocess.run([SHELLCHECK, script], capture_output=True, text=True).stdout


def test_a_node_waits_while_its_image_updates_itself(tmp_path: Path):
    programs = tmp_path / "programs"
    programs.mkdir()
    refused, accepted = "#!/bin/sh\nexit 1\n", "#!/bin/sh\n"
    files = {"sudo": SUDO, "dpkg": refused, "mountpoint": refused, "sleep": accepted}
    for name, text in files.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    environment = {"HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}"}

    subprocess.run(["bash", ROOT / "deploy" / "node_setup.sh", "host:/runs"], env=environment)

    asked = (tmp_path / "asked").read_text().splitlines()
    assert ["update" in line for line in asked] == [True, True, True, False]
    assert "install" in asked[-1]


def slurm_problems(text: str) -> list[str]:
    """Check the token, the addresses and the end of a Slurm job."""
    found = []
    if "export RAY_AUTH_MODE=token" not in text or "chmod 600 ~/.ray/auth_token" not in text:
        found.append("no token, or one that others can read")
    if re.search(r"RAY_AUTH_TOKEN=", text):
        found.append("the token stands in the environment")
    if "--dashboard-host=127.0.0.1" not in text:
        found.append("the dashboard listens beyond the head")
    if "trap end_steps EXIT" not in text:
        found.append("nodes stay when the job has ended")
    return found


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", None),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "no token, or one that others can read"),
        ("127.0.0.1 ", "0.0.0.0 ", "the dashboard listens beyond the head"),
        ("trap end_steps EXIT", "", "nodes stay when the job has ended"),
        (
            "export RAY_AUTH_MODE",
            "export RAY_AUTH_TOKEN=x RAY_AUTH_MODE",
            "the token stands in the environment",
        ),
    ],
)
def test_the_slurm_script_keeps_to_itself(old: str, new: str, expected: str | None):
    text = (ROOT / "deploy" / "slurm.sh").read_text()
    assert old in text

    found = slurm_problems(text.replace(old, new) if old else text)

    assert found == [] if expected is None else expected in found


@pytest.fixture
def node() -> Iterator[dict[str, str]]:
    """Simulate the only node of a Slurm job; gives the environment of its batch script."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    programs = place / "venv" / "bin"
    programs.mkdir(parents=True)
    names = ("--dashboard-agent-listen-port", "--ray-client-server-port", "--metrics-export-port")
    options = [f"{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
    options += [f"--object-store-memory={2**27}"]
    python = shlex.quote(sys.executable)
    files = {
        "srun": SRUN.format(options=" ".join(options)),
        "scontrol": SCONTROL,
        "ray": f'#!/bin/sh\nexec {python} -m ray.scripts.scripts "$@"\n',
        "python": f'#!/bin/sh\nexec {python} "$@"\n',
        "activate": f"PATH={programs}:$PATH\n",
    }
    for name, text in files.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        **SMALL_MACHINE,
        "HOME": str(place),
        "VENV": str(place / "venv"),
        "RAY_TMPDIR": str(place / "ray"),
        "SLURM_JOB_ID": str(free_ports(1)[0]),
        "SLURM_JOB_NODELIST": "node",
        "SLURM_CPUS_ON_NODE": "2",
        "SLURM_GPUS_ON_NODE": "0",
    }
    shutil.rmtree(place, ignore_errors=True)


def processes_of(home: str) -> list[psutil.Process]:
    """Find the processes whose home folder is one that we made."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME") == home:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.cluster
@pytest.mark.slow
def test_a_slurm_job_starts_ray_runs_the_command_and_leaves_nothing(node: dict[str, str]):
    command = ("python", "jobs/plan.py", "--depth", "4")
    job = subprocess.Popen(
        ["bash", ROOT / "deploy" / "slurm.sh", *command],
        env=node,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = job.communicate(timeout=240)
    finally:
        _, left = psutil.wait_procs(processes_of(node["HOME"]), timeout=20)
        for process in left:
            process.kill()

    token = Path(node["HOME"]) / ".ray" / "auth_token"
    assert job.returncode == 0, output
    assert "parameters" in output
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() not in output
    assert left == []


def test_a_slurm_job_ends_soon_where_ray_does_not_start(node: dict[str, str]) -> None:
    srun = Path(node["VENV"]) / "bin" / "srun"
    dying = '[ "$1 $2" = "ray start" ] && exit 1'
    srun.write_text(srun.read_text().replace('exec "$@"', f'{dying}\nexec "$@"'))

    job = subprocess.run(
        ["bash", ROOT / "deploy" / "slurm.sh", "python", "jobs/plan.py"],
        env=node,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert job.returncode == 1
    assert "error: Ray's head did not start on node" in job.stderr
