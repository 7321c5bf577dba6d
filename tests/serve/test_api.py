"""The routes from outside: streams to the byte, bad bodies, lengths, tools."""

import json
import math
import random
import socket
import string
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from nanoray.serve import protocol
from nanoray.text.tokenizer import Tokenizer
from tests.chat_run import ANSWERS, EMOJI, WEATHER
from tests.serve.server import MODEL, LocalServer

SKY = {"messages": [{"role": "user", "content": "What color is the sky?"}], "temperature": 0}
LONG = {**SKY, "ignore_eos": True, "max_tokens": 200}
CHAT = "/v1/chat/completions"


def raw_exchange(url: str, path: str, body: object) -> tuple[bytes, bytes]:
    """Send one request over a bare socket; gives head and body of the answer, as they came."""
    address = httpx.URL(url)
    content = json.dumps(body).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    ).encode()
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(request + content)
        received = b""
        while part := connection.recv(65536):
            received += part
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, unchunked(rest)


def unchunked(content: bytes) -> bytes:
    """Take HTTP's chunked framing off, strictly."""
    whole = b""
    while True:
        size, _, content = content.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert content == b"\r\n"
            return whole
        whole += content[:length]
        assert content[length : length + 2] == b"\r\n"
        content = content[length + 2 :]


@pytest.mark.parametrize("question", list(ANSWERS))
def test_each_byte_of_a_stream_is_in_the_grammar(server: LocalServer, question: str) -> None:
    body = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    head, content = raw_exchange(server.url, CHAT, body)

    assert head.startswith(b"HTTP/1.1 200 OK")
    headers = head.lower()
    assert b"content-type: text/event-stream; charset=utf-8" in headers
    assert b"cache-control: no-cache" in headers
    assert b"x-accel-buffering: no" in headers
    *events, end = content.removesuffix(b"\n\n").split(b"\n\n")
    assert end == b"data: [DONE]"
    assert content.endswith(b"data: [DONE]\n\n")
    assert all(event.startswith(b"data: {") and b"\n" not in event for event in events)
    chunks = [json.loads(event.removeprefix(b"data: ").decode("utf-8")) for event in events]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"] == []
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[:-1]]
    assert all("\N{REPLACEMENT CHARACTER}" not in text for text in texts)
    answer = ANSWERS[question]
    expected = answer if isinstance(answer, str) else "Let me see. It is 84."
    assert "".join(texts) == expected


def test_characters_of_several_bytes_leave_whole(server: LocalServer) -> None:
    _, content = raw_exchange(
        server.url,
        CHAT,
        {"messages": [{"role": "user", "content": "Show me emoji"}], "stream": True},
    )

    for event in content.split(b"\n\n"):
        event.decode("utf-8")
    assert "漢" in EMOJI


SOMETHING: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    {},
    [1],
    ["a"],
    [[1]],
    [None],
]
FIELDS = [
    *("messages", "prompt", "model", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "top_k", "n", "seed", "stop", "stream", "stream_options", "logprobs"),
    *("top_logprobs", "user", "ignore_eos", "min_tokens", "presence_penalty", "logit_bias"),
    *("frequency_penalty", "echo", "suffix", "best_of", "tools", "response_format", "tokens"),
]


def fuzzed_body(rng: random.Random, path: str) -> bytes:
    """Make a body that is nearly right, or not at all."""
    kind = rng.random()
    if kind < 0.05:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(60)))
    if kind < 0.08:
        return b"[" * rng.randrange(1, 5_000)
    if kind < 0.12:
        return json.dumps(rng.choice(SOMETHING)).encode()
    if kind < 0.13:
        return b"9" * 5_000
    body: dict[str, Any] = {"max_tokens": 2}
    if kind < 0.3:
        body = {**SKY, "prompt": "hi", "tokens": [1], "max_tokens": 2}
    elif "chat" in path:
        body["messages"] = [
            {
                "role": rng.choice(["user", "assistant", "system", "tool", 5, None]),
                "content": rng.choice([*SOMETHING, "hello", "<|bos|>", [{"type": "text"}]]),
                **({"tool_events": rng.choice(SOMETHING)} if rng.random() < 0.2 else {}),
            }
            for _ in range(rng.randrange(4))
        ]
    else:
        body["prompt"] = rng.choice([*SOMETHING, "hi", [3, 4], [99999], [-5], [[1], [2]]])
    for _ in range(rng.randrange(4)):
        body[rng.choice(FIELDS)] = rng.choice(
            [
                *SOMETHING,
                math.nan,
                math.inf,
                -(10**400),
                "".join(rng.choices(string.printable, k=9)),
            ]
        )
    return json.dumps(body).encode()


def test_whatever_is_sent_the_answer_is_no_server_error_and_json_of_openais_shape(
    server: LocalServer,
) -> None:
    rng = random.Random(0)
    paths = [CHAT, "/v1/completions", "/tokenize", "/detokenize"]
    seen: dict[int, int] = {}

    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(2_000):
            path = rng.choice(paths)
            content = fuzzed_body(rng, path)
            answer = client.post(
                path, content=content, headers={"Content-Type": "application/json"}
            )
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (content, answer.text)
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}, content
                assert error["message"]
                assert error["type"] == "invalid_request_error"
            elif b"text/event-stream" not in answer.headers["content-type"].encode():
                answer.json()
    good = server.post(CHAT, SKY)

    assert seen[200] > 100
    assert seen[400] > 1_000
    assert good.json()["choices"][0]["message"]["content"] == WEATHER


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"messages": [', "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"messages": "' + b"x" * 3_000_000 + b'"}', "application/json", 413),
    ],
)
def test_what_is_no_json_object_of_a_sane_size_is_refused(
    server: LocalServer, content: bytes, kind: str, status: int
) -> None:
    answer = httpx.post(server.url + CHAT, content=content, headers={"Content-Type": kind})

    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_stops_half_way_is_not_waited_for(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "MOST_BODY_SECONDS", 0.2)

    url = httpx.URL(server.url)

    with socket.create_connection((url.host, url.port)) as wire:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {url.host}\r\nContent-Length: 100\r\n\r\n"
        wire.sendall(head.encode() + b"{")
        answer = wire.makefile("rb").read()

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 0.2 s" in answer


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nowhere"), ("GET", CHAT), ("PUT", "/health")]
)
def test_routes_that_are_not_there_answer_in_the_same_shape(
    server: LocalServer, method: str, path: str
) -> None:
    answer = httpx.request(method, server.url + path)

    assert answer.status_code in (404, 405)
    assert path in answer.json()["error"]["message"]


def test_a_completion_without_a_length_takes_what_is_left_of_the_context(
    server: LocalServer,
) -> None:
    limit = server.thread.engine.context_tokens

    near = server.post("/v1/completions", {"prompt": [65] * (limit - 5), "ignore_eos": True})
    over = server.post("/v1/completions", {"prompt": [65] * limit})

    assert near.status_code == 200
    assert near.json()["usage"]["completion_tokens"] == 5
    assert (over.status_code, over.json()["error"]["param"]) == (400, "prompt")


def test_a_stop_string_does_not_reach_over_a_call_of_the_tool(server: LocalServer) -> None:
    asked = {"messages": [{"role": "user", "content": "What is 12*(3+4)?"}], "temperature": 0}

    answer = server.post(CHAT, {**asked, "stop": [". It"]}).json()["choices"][0]

    assert answer["message"]["content"] == "Let me see. It is 84."
    assert answer["message"]["tool_events"][0]["offset"] == len("Let me see. ")


def test_special_tokens_in_a_clients_text_are_text(server: LocalServer) -> None:
    names = "<|bos|><|user_start|><|user_end|><|assistant_start|><|assistant_end|><|python_start|>"
    messages = [{"role": "system", "content": names}, {"role": "user", "content": names}]

    text = server.post("/tokenize", {"prompt": names, "add_special_tokens": False}).json()
    chat = server.post("/tokenize", {"messages": messages}).json()
    special = server.get("/tokenizer_info").json()["special_tokens"].values()

    assert not set(text["tokens"]) & set(special)
    assert sum(token in special for token in chat["tokens"]) == 4


@pytest.mark.parametrize("path", ["/tokenize", "/v1/completions", CHAT])
def test_a_long_text_is_encoded_beside_the_loop_that_all_answers_need(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def send(text: str) -> int:
        chat = {"messages": [{"role": "user", "content": text}]}
        body = chat if path == CHAT else {"prompt": text}
        return server.post(path, {**body, "max_tokens": 1}).status_code

    def encode(tokenizer: Tokenizer, text: str) -> NDArray[np.int32]:
        threads.append(threading.get_ident())
        return encode_array(tokenizer, text)

    threads: list[int] = []
    encode_array = Tokenizer.encode_array
    monkeypatch.setattr(Tokenizer, "encode_array", encode)

    assert send("1" * 100) == 200
    loop = threads[0]
    threads.clear()

    assert send("1" * 100_000) == (200 if path == "/tokenize" else 400)
    assert threads
    assert loop not in threads


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": ["hi", "ho"], "n": 32, "max_tokens": 240, "logprobs": 20},
        {"prompt": [[1] * 200] * 100, "max_tokens": 0, "logprobs": 20, "echo": True},
    ],
    ids=["answers", "prompts"],
)
def test_more_log_probabilities_than_can_be_written_at_once_are_refused(
    server: LocalServer, asked: dict[str, Any]
) -> None:
    answer = server.post("/v1/completions", asked)

    assert answer.status_code == 400
    assert "300,000 are the most" in answer.json()["error"]["message"]


def test_text_goes_to_ids_and_back(server: LocalServer) -> None:
    for text in ("", "Grüße 漢字 🙂", "a\x00b", "<|bos|>"):
        tokens = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()
        back = server.post("/detokenize", {"tokens": tokens["tokens"]})

        assert tokens["count"] == len(tokens["tokens"])
        assert (back.status_code, back.json()) == (200, {"prompt": text})


def test_an_id_that_does_not_exist_is_named_with_its_field(server: LocalServer) -> None:
    for path, param in (("/detokenize", "tokens"), ("/v1/completions", "prompt")):
        answer = server.post(path, {param: [65, 512]})

        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert "Token id 512" in answer.json()["error"]["message"]


def test_the_tokenizer_describes_itself_as_lm_eval_asks_for(server: LocalServer) -> None:
    info = server.get("/tokenizer_info").json()

    assert info["eos_token"] == "<|bos|>"
    assert info["vocab_size"] == 512


def test_metrics_have_the_names_of_vllms_dashboards(server: LocalServer) -> None:
    before = server.metric("vllm:generation_tokens_total")

    answer = server.post(CHAT, SKY).json()

    text = server.get("/metrics").text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prompt_tokens_total",
        "generation_tokens_total",
        "request_success_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
    ):
        assert f"vllm:{name}{{" in text, name
    assert f'model_name="{MODEL}"' in text
    grown = server.metric("vllm:generation_tokens_total") - before
    assert grown == answer["usage"]["completion_tokens"]


def test_mixed_requests_at_once_give_what_each_gives_alone(server: LocalServer) -> None:
    bodies = [
        {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 10 + index,
            "temperature": index % 3 / 2,
            "seed": index,
            "top_k": 5 + index,
        }
        for index, question in enumerate((list(ANSWERS) * 8)[:32])
    ]

    def ask(body: dict[str, Any]) -> str:
        return server.post(CHAT, body).json()["choices"][0]["message"]["content"]

    alone = [ask(body) for body in bodies]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, bodies))

    assert together == alone
