"""One that is answering is deployed anew, or its job is stopped: no stream is broken off."""

import dataclasses
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from ray import serve
from ray.serve.config import HTTPOptions

from nanoray.config import InputError
from nanoray.ops.launch import ask_to_stop, keep_open, listen
from nanoray.serve.deployment import APPLICATION, ReplicaShare, build_application
from nanoray.serve.serve_config import ServeConfig
from tests.chat_run import save_chat_run
from tests.driver import connected
from tests.running import Cluster, free_ports, start_job
from tests.serve.serve_job import CHAT, LONG, SKY, stream

SHARE = ReplicaShare(cpus=0.5, gpus=0, threads=1)


@pytest.fixture
def config(ray_cluster: Cluster, tmp_path: Path) -> Iterator[ServeConfig]:
    save_chat_run(tmp_path)
    [port] = free_ports(1)
    with connected(ray_cluster, PYTHONPATH=str(Path(__file__).parents[2])):
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        yield ServeConfig(
            run="chat",
            storage=str(tmp_path),
            port=port,
            num_replicas="2",
            dtype="float32",
            page=False,
        )
        serve.shutdown()


def deploy(config: ServeConfig) -> None:
    """Put the application into the place of whatever is there."""
    application = build_application(config, str(config.storage), SHARE)
    serve.run(application, name=APPLICATION, route_prefix="/", blocking=False)


@pytest.mark.cluster
@pytest.mark.slow
def test_a_redeployment_under_load_breaks_no_stream(config: ServeConfig) -> None:
    deploy(config)
    over = threading.Event()
    ended: list[str] = []

    def keep_asking() -> None:
        while not over.is_set():
            ended.append(stream(config.own_url(), LONG)[1])

    clients = [threading.Thread(target=keep_asking) for _ in range(6)]
    for client in clients:
        client.start()
    while len(ended) < 6:
        over.wait(0.1)
    before = len(ended)
    deploy(dataclasses.replace(config, max_sequences=16))
    after = len(ended)
    while len(ended) < after + 12:
        over.wait(0.1)
    over.set()
    for client in clients:
        client.join()

    assert after > before, "nobody asked while it was redeployed"
    assert set(ended) == {"done"}


@pytest.mark.cluster
@pytest.mark.slow
def test_a_job_that_is_killed_soon_after_it_was_told_to_stop_leaves_nothing_behind(
    config: ServeConfig, ray_cluster: Cluster
) -> None:
    given = ("--run", "chat", "--storage", config.storage, "--port", config.port)
    job = start_job("serve.py", *given, "--dtype", "float32", env=ray_cluster.environment())
    assert job.stdout is not None
    with ThreadPoolExecutor(1) as pool, job.stdout:
        while "API" not in (line := job.stdout.readline()):
            assert line, job.wait()
        running = pool.submit(stream, config.own_url(), LONG)
        while not_running(config):
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        while "in the making" not in (line := job.stdout.readline()):
            assert line, job.wait()
        late = httpx.post(config.own_url() + CHAT, json=SKY, timeout=60)
        health = httpx.get(f"{config.own_url()}/health", timeout=60)
        assert not running.done(), "it was over before the job was killed"
        job.kill()  # as `ray job stop` does after three seconds
        job.wait()
        ended = running.result()[1]
    deadline = time.monotonic() + 60
    while APPLICATION in serve.status().applications:
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.5)

    assert ended == "done"
    assert (late.status_code, health.status_code) == (503, 503)
    assert "retry-after" in late.headers


@pytest.mark.cluster
@pytest.mark.slow
def test_a_server_that_is_about_to_end_goes_on_when_it_is_started_again(
    config: ServeConfig,
) -> None:
    deploy(config)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, config.own_url(), LONG)
        while not_running(config):
            time.sleep(0.02)
        door, _ = keep_open()
        assert door is not None
        left = ask_to_stop(door)
        keep_open()
        deploy(config)
        ended = running.result()[1]
    answer = httpx.post(config.own_url() + CHAT, json=SKY, timeout=60)

    assert (left, ended, answer.status_code) == (1, "done", 200)


@pytest.mark.cluster
@pytest.mark.slow
def test_serve_that_listens_elsewhere_moves_only_if_it_serves_nothing(config: ServeConfig) -> None:
    [port] = free_ports(1)
    listen(dataclasses.replace(config, port=port))
    moved = serve.status().applications
    deploy(dataclasses.replace(config, port=port))
    url = f"http://127.0.0.1:{port}"
    answer = httpx.post(url + CHAT, json=SKY, timeout=60)

    with pytest.raises(InputError, match=f"port {port}, for {APPLICATION}, so .*{config.port}"):
        listen(config)

    assert (moved, answer.status_code) == ({}, 200)


def not_running(config: ServeConfig) -> bool:
    """Say whether no answer is in the making."""
    lines = httpx.get(f"{config.own_url()}/metrics", timeout=60).text.splitlines()
    return "1.0" not in {
        line.rpartition(" ")[2] for line in lines if line.startswith("vllm:num_requests_running")
    }
