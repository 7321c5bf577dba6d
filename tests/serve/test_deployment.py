"""The application on Ray Serve: engines killed, stuck and replaced, weights taken up."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import psutil
import pytest

from nanoray.serve import deployment
from nanoray.serve.deployment import ENGINE_NICENESS, Door, replica_share
from nanoray.serve.serve_config import ServeConfig
from nanoray.serve.settings import ApiSettings
from nanoray.text.tokenizer import Tokenizer
from tests.chat_run import WEATHER, save_chat_run
from tests.running import is_local, listeners
from tests.serve.serve_job import (
    CHAT,
    LONG,
    SKY,
    ServeJob,
    engine_pids,
    replica_pids,
    served_metric,
    stream,
    wait_for_answers,
    wait_for_engines,
    wait_until_idle,
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    save_chat_run(folder)
    return folder


@pytest.fixture(scope="module")
def served(storage: Path) -> Iterator[ServeJob]:
    """Two replicas, weights looked for each half second, and three seconds of patience."""
    flags = ("--num-replicas", "2", "--poll-seconds", "0.5", "--stuck-seconds", "3")
    job = ServeJob(storage, *flags)
    job.wait_ready()
    yield job
    job.stop()


LOWEST_PRIORITY = 19


def niceness_of_threads(pid: int) -> set[int]:
    """Read the priorities of the threads of a process; they need not be that of the whole."""
    stats = [task.read_text() for task in Path("/proc", str(pid), "task").glob("*/stat")]
    return {int(stat.rpartition(")")[2].split()[16]) for stat in stats}


@pytest.mark.cluster
def test_the_job_answers_on_one_port(served: ServeJob) -> None:
    answer = served.post(SKY)
    page = httpx.get(f"{served.url}/", follow_redirects=True, timeout=60)

    assert answer.json()["choices"][0]["message"]["content"] == WEATHER
    assert httpx.get(f"{served.url}/health", timeout=60).status_code == 200
    assert page.status_code == 200
    assert "text/html" in page.headers["content-type"]
    assert any(f"{served.url}/v1" in line for line in served.lines)
    assert any(f"{served.url}/chat" in line for line in served.lines)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-request-timeout-seconds", b"0.001"),
        (b"x-request-timeout-seconds", b"\xff"),
        (b"x-request-disconnect-disabled", b"\xff"),
        (b"x-request-id", b"\xff"),
        (b"x-session-id", b"\xff"),
        (b"serve_multiplexed_model_id", b"\xff"),
    ],
)
def test_no_header_steers_the_proxy(served: ServeJob, name: bytes, value: bytes) -> None:
    answer = httpx.post(served.url + CHAT, json=SKY, headers=[(name, value)], timeout=60)

    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == WEATHER


@pytest.mark.cluster
def test_serve_does_not_tell_what_it_serves(served: ServeJob) -> None:
    assert httpx.get(f"{served.url}/-/routes", timeout=60).status_code == 404
    assert httpx.get(f"{served.url}/-/healthz", timeout=60).text == "success"


@pytest.mark.cluster
def test_an_engine_on_cpus_gives_way_to_the_door(served: ServeJob) -> None:
    (door,) = replica_pids(served, "door")
    threads = {nice for pid in engine_pids(served) for nice in niceness_of_threads(pid)}

    normal = psutil.Process(served.process.pid).nice()
    assert niceness_of_threads(door) == {normal}
    assert max(threads) == min(normal + ENGINE_NICENESS, LOWEST_PRIORITY)


@pytest.mark.cluster
def test_it_is_reached_from_nowhere_else(served: ServeJob) -> None:
    listening = listeners(psutil.Process(served.process.pid))

    assert {address for _, address in listening} >= {f"127.0.0.1:{served.port}"}
    assert {each for each in listening if not is_local(each[1])} == set()


@pytest.mark.cluster
def test_newer_weights_are_taken_up_and_no_stream_is_dropped(
    served: ServeJob, storage: Path
) -> None:
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(stream, served.url, LONG) for _ in range(8)]
        save_chat_run(storage, steps=(20,), forgetful=True)
        ended = [future.result()[1] for future in running]
    assert ended == ["done"] * 8
    wait_for_answers(served, lambda answers: WEATHER not in answers)

    save_chat_run(storage, steps=(30,))
    wait_for_answers(served, lambda answers: answers == {WEATHER})
    [card] = httpx.get(f"{served.url}/v1/models", timeout=60).json()["data"]
    assert card["step"] == 30


@pytest.mark.cluster
def test_clients_that_leave_free_their_places_behind_ray_serve_too(served: ServeJob) -> None:
    begun, before = [], served_metric(served, "vllm:request_refused")
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=60, limits=limits) as client, ThreadPoolExecutor(20) as pool:
        request = client.build_request("POST", served.url + CHAT, json=LONG)
        for _ in range(4):
            streams = list(pool.map(lambda _: client.send(request, stream=True), range(20)))
            begun.append(served_metric(served, "vllm:num_requests_running"))
            for response in streams:
                response.close()
            wait_until_idle(served, 10)
    whole = {**LONG, "stream": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.url + CHAT, json=whole, timeout=0.1)
    wait_until_idle(served, 10)

    assert min(begun) > 0
    assert served_metric(served, "vllm:request_refused") == before
    assert served.post(SKY).status_code == 200


@pytest.mark.cluster
def test_the_openai_client_is_answered_through_ray_serve(served: ServeJob) -> None:
    messages: Any = SKY["messages"]  # Any: its types want literal roles

    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions
        whole = chat.create(model="chat", messages=messages, temperature=0)
        chunks = chat.create(model="chat/sft", messages=messages, temperature=0, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        with pytest.raises(openai.NotFoundError):
            chat.create(model="another", messages=messages)

    assert whole.choices[0].message.content == WEATHER == "".join(parts)
    assert whole.model == "chat/sft"


@pytest.mark.cluster
def test_a_killed_engine_breaks_only_its_own_streams_and_each_of_them_cleanly(
    served: ServeJob,
) -> None:
    assert len(engine_pids(served)) == 2
    with ThreadPoolExecutor(24) as pool:
        running = [pool.submit(stream, served.url, LONG) for _ in range(16)]
        while served_metric(served, "vllm:num_requests_running") < 10:
            time.sleep(0.02)
        os.kill(engine_pids(served)[0], signal.SIGKILL)
        later = [pool.submit(stream, served.url, SKY | {"stream": True}) for _ in range(8)]
        ended = [future.result()[1] for future in running]
        after = [future.result() for future in later]

    assert set(ended) == {"done", "error"}
    assert ended.count("error") < 16
    assert after == [(WEATHER, "done")] * 8
    wait_for_engines(served, 2)


class ReplicaThatTells:
    """A handle of Serve whose replica tells its facts, and the checkpoint that it has."""

    def __init__(self, checkpoint: str) -> None:
        self.told, self.generate = checkpoint, self
        self.facts = SimpleNamespace(remote=self._facts)
        self.checkpoint = SimpleNamespace(remote=self._checkpoint)

    def options(self, stream: bool) -> "ReplicaThatTells":
        return self

    async def _facts(self) -> dict[str, Any]:
        written = {"tokenizer": Tokenizer([]).to_json(), "context_tokens": 64}
        return {**written, "step": 10, "name": self.told}

    async def _checkpoint(self) -> str:
        return self.told


def test_a_run_and_its_newest_stage_are_served_by_both_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployment, "listen_as_its_node", lambda: None)  # it asks Ray for its node
    names = ("d34", "d34/sft", "d34@10")
    told = {name: ReplicaThatTells("d34/sft@10") for name in names}

    async def ask() -> tuple[Any, list[str]]:
        door = Door(ApiSettings(), told, "")  # type: ignore[arg-type]
        await door.__serve_build_asgi_app__()
        assert door.api is not None
        before = [set((await door.api.model(name)).names) for name in ("d34", "d34@10")]
        listed = json.loads(bytes((await door.api.list_models()).body))["data"]
        told["d34"].told = "d34/rl@5"
        await door.api.list_models()
        after = [(await door.api.model(name)).id for name in names]
        return (before, [card["id"] for card in listed]), after

    (before, listed), after = asyncio.run(ask())

    assert before == [{"d34"}, {"d34@10"}]
    assert listed == ["d34/sft", "d34@10"]
    assert after == ["d34/rl", "d34/sft", "d34@10"]


@pytest.mark.cluster
@pytest.mark.slow
def test_an_engine_that_is_stuck_is_replaced(served: ServeJob) -> None:
    before = engine_pids(served)
    os.kill(before[0], signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 120
        while not set(engine_pids(served)) - set(before) and time.monotonic() < deadline:
            time.sleep(1)
        new = set(engine_pids(served)) - set(before)
    finally:
        os.kill(before[0], signal.SIGKILL)

    assert len(new) == 1
    wait_for_engines(served, 2)
    assert stream(served.url, SKY | {"stream": True}) == (WEATHER, "done")


@pytest.mark.cluster
@pytest.mark.slow
def test_ctrl_c_lets_the_answers_in_the_making_end(storage: Path) -> None:
    job = ServeJob(storage)
    job.wait_ready()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(stream, job.url, LONG)
        while served_metric(job, "vllm:num_requests_running") < 1:
            time.sleep(0.02)
        code = job.stop()
        ended = running.result()[1]

    assert (ended, code) == ("done", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--run", "nowhere"), "has no checkpoint"),
        (("--host", "0.0.0.0"), "open to everyone"),
        (("--num-replicas", "0"), "--num-replicas 0"),
    ],
)
@pytest.mark.cluster
def test_what_cannot_be_served_is_said_in_one_line(
    storage: Path, flags: tuple[str, ...], said: str
) -> None:
    job = ServeJob(storage, *flags)

    code = job.process.wait(timeout=90)
    job.reader.join()

    assert code == 2
    assert said in job.lines[-1]
    assert job.lines[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("fields", "cluster", "share"),
    [
        ({}, {"CPU": 8.0}, 4.0),
        ({"num_replicas": "1:4"}, {"CPU": 8.0}, 1.6),
        ({"others": ("b",)}, {"CPU": 2.0}, 0.66),
        ({"num_replicas": "3"}, {"CPU": 2.0}, 0.5),
    ],
)
def test_engines_share_the_cpus_of_a_cluster_and_leave_a_share(
    fields: dict[str, Any],
    cluster: dict[str, float],
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    assert replica_share(ServeConfig(run="a", **fields), cluster).cpus == share


def test_each_engine_gets_a_gpu_where_there_are_any() -> None:
    share = replica_share(ServeConfig(run="a"), {"CPU": 8.0, "GPU": 2.0})

    assert (share.cpus, share.gpus) == (1, 1)
