"""More than the server can do: leaving clients, full places, late answers, engines that fail."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from nanoray.inference.sampling import SamplingParams
from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.api import Api
from nanoray.serve.backend import ServedModel, Step
from nanoray.serve.settings import ApiSettings
from nanoray.text.tokenizer import Tokenizer
from tests.serve.server import MODEL, serve
from tests.serve.test_api import CHAT, LONG, SKY, raw_exchange


def test_clients_that_leave_free_their_places() -> None:
    with (
        serve(ApiSettings(), max_sequences=64) as server,
        httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None)) as client,
        ThreadPoolExecutor(50) as pool,
    ):
        request = client.build_request("POST", server.url + CHAT, json={**LONG, "stream": True})
        streams = list(pool.map(lambda _: client.send(request, stream=True), range(50)))
        taken = server.api.admission.taken

        for response in streams:
            response.close()
        deadline = time.monotonic() + 2
        while server.thread.engine.has_work and time.monotonic() < deadline:
            time.sleep(0.05)
        idle = not server.thread.engine.has_work
        gauges = [server.metric(f"vllm:num_requests_{name}") for name in ("running", "waiting")]
        after = server.post(CHAT, SKY)

    assert taken > 40
    assert idle
    assert gauges == [0, 0]
    assert server.api.admission.taken == 0
    assert after.status_code == 200


def test_requests_beyond_the_limit_are_told_to_come_again_and_the_others_are_answered() -> None:
    with (
        serve(ApiSettings(most_answers=4), max_sequences=2) as server,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(lambda _: server.post(CHAT, LONG), range(12)))
        after = server.post(CHAT, SKY)

    refused = [answer for answer in answers if answer.status_code == 429]
    accepted = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(accepted) == 12
    assert len(accepted) >= 4
    assert refused
    for answer in refused:
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"]["type"] == "rate_limit_error"
    assert after.status_code == 200


def test_an_answer_that_does_not_begin_in_time_is_given_up() -> None:
    settings = ApiSettings(first_token_seconds=0.3)
    held = threading.Event()
    with serve(settings) as server, ThreadPoolExecutor(1) as pool:
        holding = pool.submit(asyncio.run, server.thread.do(lambda engine: held.wait()))
        late = server.post(CHAT, SKY)
        taken = server.api.admission.taken
        held.set()
        holding.result()
        after = server.post(CHAT, SKY)

    assert (late.status_code, taken) == (429, 0)
    assert "retry-after" in late.headers
    assert after.status_code == 200


def test_an_answer_that_takes_too_long_ends_as_if_by_its_length() -> None:
    with serve(ApiSettings(answer_seconds=0.05)) as server:
        whole = server.post(CHAT, LONG).json()
        _, stream = raw_exchange(server.url, CHAT, {**LONG, "stream": True})

    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] < 200
    assert b'"finish_reason":"length"' in stream
    assert stream.endswith(b"data: [DONE]\n\n")


def test_an_engine_that_is_stuck_or_has_failed_is_told_by_health() -> None:
    with serve(ApiSettings(), stuck_seconds=0.5) as server, ThreadPoolExecutor(1) as pool:
        well = server.get("/health")
        held = threading.Event()
        holding = pool.submit(asyncio.run, server.thread.do(lambda engine: held.wait()))
        time.sleep(1.2)
        stuck = server.get("/health")
        held.set()
        holding.result()
        time.sleep(1.2)
        again = server.get("/health")
        server.thread.engine.runner = None  # type: ignore[assignment]
        server.post(CHAT, SKY)
        time.sleep(1.2)
        failed = server.get("/health")

    answers = (well, stuck, again, failed)
    assert [answer.status_code for answer in answers] == [200, 503, 200, 503]
    assert f"No engine answers for {MODEL}." in failed.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "taken"),
    [
        ({"prompt": ["A"] * 9}, 200, 4),
        ({"prompt": ["A"] * 3}, 200, 3),
        ({"prompt": ["A"] * 9, "n": 5}, 400, 0),
        ({"prompt": ["A"] * 256, "n": 2}, 400, 0),
        ({"prompt": "A", "n": 5}, 400, 0),
    ],
)
def test_prompts_of_one_request_for_which_there_is_no_place_wait_inside_of_it(
    body: dict[str, object], status: int, taken: int
) -> None:
    most_taken = 0

    async def generate(prompt: list[int], params: SamplingParams) -> AsyncIterator[Step]:
        nonlocal most_taken
        most_taken = max(most_taken, api.admission.taken)
        end = FinishReason.LENGTH
        token = TokenOutput(
            request=0, sample=0, token=65, part=Part.TEXT, text="A", finish_reason=end
        )
        yield Step([token], "r", 0.0)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(api.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/completions", json=body)

    api = Api({"m": ServedModel("m", Tokenizer([]), 64, generate)}, ApiSettings(most_answers=4))
    answer = asyncio.run(ask())

    assert (answer.status_code, most_taken, api.admission.taken) == (status, taken, 0)
    if status == 200:
        assert [each["text"] for each in answer.json()["choices"]] == ["A"] * len(body["prompt"])  # type: ignore[arg-type]


def test_a_server_that_is_about_to_stop_says_so_and_ends_what_it_began() -> None:
    with serve(ApiSettings()) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.post, CHAT, LONG)
        while not server.metric("vllm:num_requests_running"):
            time.sleep(0.01)
        server.api.admission.is_draining = True
        health, refused = server.get("/health"), server.post(CHAT, SKY)

        assert running.result().status_code == 200

    assert (health.status_code, refused.status_code) == (503, 503)
    assert "retry-after" in refused.headers
    assert refused.json()["error"]["type"] == "server_error"


def test_an_engine_that_fails_is_an_error_inside_of_a_stream_and_a_503_before_it() -> None:
    with serve(ApiSettings()) as server:
        with httpx.stream("POST", server.url + CHAT, json={**LONG, "stream": True}) as response:
            lines = response.iter_lines()
            first = next(lines)
            server.thread.engine.runner = None  # type: ignore[assignment]
            rest = [line for line in lines if line]
        after = server.post(CHAT, SKY)

    assert first.startswith("data: {")
    assert json.loads(rest[-2].removeprefix("data: "))["error"]["type"] == "server_error"
    assert rest[-1] == "data: [DONE]"
    assert after.status_code == 503


def test_a_run_that_goes_on_to_its_next_stage_keeps_the_names_that_clients_use() -> None:
    with serve(ApiSettings()) as server:
        [model] = server.api.models.values()
        first, newest = model.id, f"{model.id}-next@7"

        async def ask() -> str:
            return newest

        model.newest = ask
        names = [first, f"{first}-next", "another"]
        answers = [server.post(CHAT, {**SKY, "model": name}) for name in reversed(names)]
        listed = server.get("/v1/models").json()["data"]

    assert [answer.status_code for answer in answers] == [404, 200, 200]
    assert {answer.json()["model"] for answer in answers[1:]} == {f"{first}-next"}
    assert f"There are: {first}-next." in answers[0].json()["error"]["message"]
    assert [(card["id"], card["step"]) for card in listed] == [(f"{first}-next", 7)]
