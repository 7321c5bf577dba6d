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

from nanoray.serve.deployment import APPLICATION, ReplicaShare, build_application
from nanoray.serve.serve_config import ServeConfig
from tests.chat_run import save_chat_run
from tests.driver import connected
from tests.running import Cluster, free_ports, start_job
from tests.serve.test_deployment import LONG, stream

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
        time.sleep(0.5)  # `ray job stop` gives it three seconds
        assert not running.done(), "it was over before the job was killed"
        job.kill()
        job.wait()
        ended = running.result()[1]
    deadline = time.monotonic() + 60
    while APPLICATION in serve.status().applications:
        assert time.monotonic() < deadline, serve.status()
        time.sleep(0.5)

    assert ended == "done"


def not_running(config: ServeConfig) -> bool:
    """Say whether no answer is in the making."""
    lines = httpx.get(f"{config.own_url()}/metrics", timeout=60).text.splitlines()
    return "1.0" not in {
        line.rpartition(" ")[2] for line in lines if line.startswith("vllm:num_requests_running")
    }
