"""docs/clusters.md and SECURITY.md name files, flags and settings that exist."""

import re
import tomllib
from pathlib import Path

import pytest

from nanoray.serve.serve_config import KEYS_VARIABLE
from tests.deploy.documented import documented_commands

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("docs/clusters.md", "SECURITY.md")
FILE = re.compile(r"(?<![\w/.-])(?:jobs|deploy|docs|tests|nanoray)/[\w./-]*\w|cluster\.yaml")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document: str):
    named = set(FILE.findall((ROOT / document).read_text()))

    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_the_values_that_are_the_users_are_those_of_the_file():
    text = (ROOT / "docs" / "clusters.md").read_text()
    metadata = (ROOT / "cluster.yaml").read_text().split("metadata:")[1].split("max_workers:")[0]

    asked = re.findall(r"^  (\w+): &", metadata, re.MULTILINE)
    explained = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)

    assert [*asked, "region"] == explained


def test_what_needs_a_cloud_is_marked():
    sections = (ROOT / "docs" / "clusters.md").read_text().split("\n## ")[1:]

    unmarked = {
        section.splitlines()[0]
        for section in sections
        if re.search(r"^(ray up|kubectl|sbatch) ", section, re.MULTILINE)
        and not re.search(r"\(needs (a cloud|a cluster|Slurm)\)", section.splitlines()[0])
    }

    assert len(sections) > 6
    assert unmarked == set()


def test_the_keys_are_named_as_the_server_reads_them():
    assert KEYS_VARIABLE in (ROOT / "SECURITY.md").read_text()


def test_every_dependency_is_explained():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = (ROOT / "README.md").read_text().split("## Dependencies")[1]

    named = {re.split(r"[\[<>=]", each)[0] for each in project["dependencies"]}
    explained = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)

    told = {name for row in explained for name in re.sub(r"\[.*\]", "", row).split(", ")}
    assert named - told == set()


def test_every_install_that_is_shown_is_by_exact_versions():
    shown = [str(command) for command in documented_commands() if "install" in command.words]
    made = [
        line
        for file in ("Makefile", "scripts/gpu_check.sh", "scripts/demo.sh")
        for line in (ROOT / file).read_text().splitlines()
        if "pip install" in line
    ]
    sentences = re.findall(r"`(pip install [^`]+)`", (ROOT / "README.md").read_text())

    installs = [each for each in [*shown, *made, *sentences] if "pip install" in each]

    assert len(installs) > 5
    assert [each for each in installs if "-c constraints.txt" not in each] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_secret_is_written_into_a_checkout_that_jobs_send_along(document: str):
    made = re.findall(r"^.*openssl rand.*> *\S+.*$", (ROOT / document).read_text(), re.MULTILINE)

    assert [line for line in made if not re.search(r"umask 077 && .*> *~/", line)] == []
