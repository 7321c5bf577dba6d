"""What Prometheus is told to ask is there, and answers to what it is asked with."""

import json
import secrets
from pathlib import Path
from typing import Literal

import httpx
import pytest
import ray
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

from nanoray.serve.settings import ApiSettings, hash_keys
from tests.driver import connected
from tests.running import Cluster
from tests.serve.server import serve

FILE = Path(__file__).parents[2] / "deploy" / "prometheus.yml"


class Strict(BaseModel):
    """A section that may have these settings only, by the names of Prometheus' manual."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Authorization(Strict):
    type: Literal["Bearer"] = "Bearer"
    credentials_file: str


class FileDiscovery(Strict):
    files: list[str]


class StaticTargets(Strict):
    targets: list[str]


class ScrapeConfig(Strict):
    job_name: str
    authorization: Authorization | None = None
    file_sd_configs: list[FileDiscovery] = []
    static_configs: list[StaticTargets] = []


class Prometheus(Strict):
    scrape_configs: list[ScrapeConfig]


def jobs() -> dict[str, ScrapeConfig]:
    read = Prometheus.model_validate(yaml.safe_load(FILE.read_text()))
    return {job.job_name: job for job in read.scrape_configs}


def headers(job: ScrapeConfig, folder: Path) -> dict[str, str]:
    """Give what Prometheus sends along; `folder` stands for that of the file with the key."""
    if job.authorization is None:
        return {}
    key = (folder / Path(job.authorization.credentials_file).name).read_text().strip()
    return {"Authorization": f"{job.authorization.type} {key}"}


def test_it_has_the_form_that_prometheus_reads() -> None:
    wrong = {"scrape_configs": [{"job_name": "ray", "bearer": "secret"}]}

    assert set(jobs()) == {"ray", "nanoray-chat"}
    with pytest.raises(ValidationError):
        Prometheus.model_validate(wrong)


def test_a_chat_with_keys_gives_its_metrics_to_the_key_in_the_file(tmp_path: Path) -> None:
    chat, key = jobs()["nanoray-chat"], secrets.token_urlsafe(20)
    assert chat.authorization is not None
    file = Path(chat.authorization.credentials_file)
    (tmp_path / file.name).write_text(key + "\n")

    with serve(ApiSettings(key_hashes=hash_keys([key]))) as server:
        without = server.get("/metrics")
        asked = server.get("/metrics", headers=headers(chat, tmp_path))

    assert (without.status_code, asked.status_code) == (401, 200)
    assert "vllm:num_requests_running" in asked.text
    assert file.is_absolute()  # not in the checkout, of which deploy/ is sent to every node


@pytest.mark.cluster
def test_the_nodes_that_ray_lists_give_theirs_to_everybody(
    ray_cluster: Cluster, tmp_path: Path
) -> None:
    job = jobs()["ray"]
    with connected(ray_cluster):
        session = ray._private.worker._global_node
        assert session is not None
        listed = Path(session.get_session_dir_path()) / PROMETHEUS_SERVICE_DISCOVERY_FILE
    # The newest head of a machine links it from Ray's own folder, where Prometheus looks.
    (named,) = (Path(file) for files in job.file_sd_configs for file in files.files)

    (group,) = json.loads(listed.read_text())
    answers = [httpx.get(f"http://{target}/metrics", timeout=20) for target in group["targets"]]

    assert (named.parent, named.name) == (Path("/tmp/ray"), PROMETHEUS_SERVICE_DISCOVERY_FILE)
    assert len(answers) >= 1
    assert {answer.status_code for answer in answers} == {200}
    assert headers(job, tmp_path) == {}
