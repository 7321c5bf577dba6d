"""Secrets are planted wherever a user keeps them, and looked for in all that is left of a run."""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from tests.heads import Head, running_head
from tests.hub import running_hub
from tests.running import TINY, free_ports, process_title, run_job

PASSWORD = secrets.token_hex(20)
LOGIN = "Basic " + base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
PLANTED = {
    name: secrets.token_hex(20)
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "NANORAY_API_KEYS",
        "RAY_AUTH_TOKEN",
        "WANDB_API_KEY",
    )
}
"""What the environment of a node holds."""
WRONG_KEY = secrets.token_hex(20)
CANARIES = {**PLANTED, "login": LOGIN.removeprefix("Basic "), "password": PASSWORD, "x": WRONG_KEY}
SUBMIT = ("submit", "--working-dir", ".")
DASHBOARD = (
    *("/", "/nodes?view=summary", "/logical/actors", "/events", "/timezone"),
    *("/api/jobs/", "/api/version", "/api/cluster_status", "/api/serve/applications/"),
    *("/api/train/v2/runs/v1", "/api/train/v2/runs", "/api/component_activities"),
    *("/api/v0/actors?detail=1", "/api/v0/jobs?detail=1", "/api/v0/nodes?detail=1"),
    *("/api/v0/workers?detail=1", "/api/v0/tasks?detail=1", "/api/v0/objects?detail=1"),
    *("/api/v0/placement_groups?detail=1", "/api/v0/runtime_envs?detail=1"),
    *("/api/v0/cluster_metadata", "/api/prometheus/sd"),
)
"""What the page of Ray's dashboard asks for."""


@dataclass
class Traces:
    """All that can be read after a run: texts by the place they are from."""

    head: Head
    run_flags: tuple[object, ...]
    texts: dict[str, bytes] = field(default_factory=dict)

    def leaks(self) -> dict[str, list[str]]:
        """Name the places in which each secret stands."""
        found = {
            name: [place for place, text in self.texts.items() if canary.encode() in text]
            for name, canary in CANARIES.items()
        }
        return {name: places for name, places in found.items() if places}

    def keep_job(self, *command: object) -> None:
        """Submit a job, wait for its end, and keep what it says."""
        done = self.head.job(*SUBMIT, "--", "python", *command)
        self.texts[str(command[0])] = (done.stdout + done.stderr).encode()
        assert "succeeded" in done.stdout, done.stdout + done.stderr

    def keep_what_is_there(self) -> None:
        """Keep the files of runs and of Ray's session, the dashboard, and the command lines."""
        place = self.head.folder.parent
        for file in place.rglob("*"):
            if file.is_file() and not file.is_symlink() and place / "checkout" not in file.parents:
                self.texts[str(file.relative_to(place))] = file.read_bytes()
        jobs = [job["submission_id"] for job in self.head.get("/api/jobs/").json()]
        nodes = self.head.get("/nodes?view=summary").json()["data"]["summary"]
        more = [f"/nodes/{node['raylet']['nodeId']}" for node in nodes]
        more += [f"/api/jobs/{job}{end}" for job in jobs for end in ("", "/logs")]
        for path in (*DASHBOARD, *more):
            self.texts[f"dashboard {path}"] = self.head.get(path).content
        titles = [process_title(process) for process in psutil.process_iter()]
        self.texts["ps"] = "\n".join(titles).encode()


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    """Train from a store that asks for a password, on a head with secrets in its environment."""
    options = json.dumps({"headers": {"Authorization": LOGIN}})
    with (
        running_hub() as store,
        running_head("--num-cpus", 4, **PLANTED, FSSPEC_HTTP=options, WANDB_MODE="offline") as head,
    ):
        store.authorization = LOGIN
        data = ("--data", f"{store.url}/texts/text.parquet")
        flags = ("--run", "r", *data, "--num-steps", 4, "--save-every", 2, *TINY)
        found = Traces(head, flags)
        found.keep_job("jobs/pretrain.py", *flags, "--wandb-project", "p")
        found.keep_what_is_there()
        yield found


def ask_server(traces: Traces) -> dict[str, int]:
    """Serve the run, and keep what the server says to who has a key, has a wrong one, has none.

    Gives the statuses for who has none.
    """
    [port] = free_ports(1)
    serve = ("python", "jobs/serve.py", "--run", "r", "--port", port, "--dtype", "float32")
    started = traces.head.job(*SUBMIT, "--submission-id", "s", "--no-wait", "--", *serve)
    assert started.returncode == 0, started.stderr
    deadline = time.monotonic() + 180
    while "API" not in (said := traces.head.job("logs", "s").stdout):
        assert time.monotonic() < deadline, said
        time.sleep(1)
    statuses = {}
    for key in (PLANTED["NANORAY_API_KEYS"], WRONG_KEY, ""):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
        ) as client:
            body = {"prompt": "a", "max_tokens": 1}
            answers = {"/v1/completions": client.post("/v1/completions", json=body)}
            for path in ("/v1/models", "/metrics", "/nowhere", "/chat/config", "/health"):
                answers[path] = client.get(path)
            for path in ("/-/healthz", "/-/routes"):
                answers[path] = client.get(path)
        for path, answer in answers.items():
            traces.texts[f"{path} {answer.status_code}"] = answer.content
            statuses[path] = answer.status_code
    return statuses


@pytest.mark.slow
@pytest.mark.cluster
def test_secrets_of_the_environment_are_written_nowhere(traces: Traces) -> None:
    assert traces.leaks() == {}
    for place, holds in {
        "ps": "raylet",
        "dashboard /api/jobs/": "jobs/pretrain.py",
        "dashboard /api/v0/runtime_envs?detail=1": "working_dir",
        "head/runs/r/pretrain/config.json": "/texts/text.parquet",
        "head/runs/r/pretrain/report.html": "Environment",
        "jobs/pretrain.py": "saved step 4",
    }.items():
        assert holds in traces.texts[place].decode(), place
    assert any(place.endswith("r-pretrain.wandb") for place in traces.texts)
    assert any("/logs/job-driver-" in place for place in traces.texts)


@pytest.mark.cluster
@pytest.mark.slow
def test_the_doctor_and_a_server_tell_no_secret_either(traces: Traces) -> None:
    traces.keep_job("jobs/doctor.py", *traces.run_flags, "--quick")
    traces.keep_job("jobs/doctor.py", *traces.run_flags, "--quick", "--json")
    statuses = ask_server(traces)
    traces.keep_what_is_there()
    traces.head.job("stop", "s")

    assert traces.leaks() == {}
    open_paths = {"/health", "/-/healthz"}  # the other is Serve's own, for probes
    assert {path for path, status in statuses.items() if status == 200} == open_paths
    assert set(statuses.values()) == {200, 401}
    assert "/v1/completions 200" in traces.texts
    assert any("/logs/serve/" in place for place in traces.texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment"),
    [
        (("pretrain.py", "--data", "http://me:{}@127.0.0.1:1/x.parquet"), {}),
        (("pretrain.py", "--storage", "http://127.0.0.1:1/x?token={}"), {}),
        (
            (
                "data.py",
                "--storage",
                "s3://key:{}@bucket",
                "--data",
                "climbmix",
                "--num-shards",
                "1",
            ),
            {},
        ),
        (("chat.py", "--url", "http://me:{}@127.0.0.1:1"), {}),
        (("plan.py", "--dta", "s3://key:{}@bucket/x"), {}),
        (("evaluate.py", "--eval-bundle", "https://127.0.0.1:1/x?sig={}"), {}),
        (
            ("data.py", "--data", "climbmix", "--num-shards", "1"),
            {"HF_ENDPOINT": "ftp://me:{}@127.0.0.1:1"},
        ),
    ],
)
def test_a_secret_in_an_address_is_refused_without_being_shown(
    command: tuple[str, ...], environment: dict[str, str]
) -> None:
    env = {name: value.format(PASSWORD) for name, value in environment.items()}

    code, said = run_job(*(word.format(PASSWORD) for word in command), env=env)

    assert code == 2
    assert PASSWORD not in said
    assert said.startswith("error: ")
    assert "***" in said
