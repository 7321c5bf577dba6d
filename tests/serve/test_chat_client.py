"""The client behind the page and the terminal, against a real server."""

import asyncio
from typing import Any

import httpx
import pytest

from nanoray.serve.chat_client import Answer, AnswerError, ChatClient, problem_of
from nanoray.serve.settings import ApiSettings, hash_keys
from tests.chat_run import WEATHER
from tests.serve.server import MODEL, LocalServer, serve

SKY = {"messages": [{"role": "user", "content": "What color is the sky?"}], "temperature": 0}


def ask(client: ChatClient, body: dict[str, Any]) -> tuple[int, Answer]:
    """Ask something; gives how often the answer grew, and all of it."""

    async def run() -> tuple[int, Answer]:
        grown = [answer async for answer in client.answer(body)]
        return len(grown), grown[-1]

    return asyncio.run(run())


def test_an_answer_grows_to_the_whole(server: LocalServer) -> None:
    count, answer = ask(ChatClient(server.url), SKY)

    assert count > 10
    assert answer.content == WEATHER
    assert answer.finish_reason == "stop"
    assert answer.num_tokens == 21
    assert "tokens/s" in answer.speed()


def test_the_room_for_an_answer_is_what_the_prompt_leaves(server: LocalServer) -> None:
    room = asyncio.run(ChatClient(server.url).room(SKY))

    _, answer = ask(ChatClient(server.url), {**SKY, "ignore_eos": True})

    assert answer.num_tokens == room


def test_tool_calls_come_with_it(server: LocalServer) -> None:
    _, answer = ask(
        ChatClient(server.url),
        {"messages": [{"role": "user", "content": "What is 12*(3+4)?"}], "temperature": 0},
    )

    assert [event["output"] for event in answer.tool_events] == ["84"]


def test_models_are_listed_whether_or_not_the_address_ends_with_v1(server: LocalServer) -> None:
    for address in (server.url, f"{server.url}/v1", f"{server.url}/v1/"):
        assert asyncio.run(ChatClient(address).models()) == [MODEL]


def test_what_the_server_refuses_is_said_in_its_words(server: LocalServer) -> None:
    with pytest.raises(AnswerError, match="The model 'nowhere' does not exist"):
        ask(ChatClient(server.url), {**SKY, "model": "nowhere"})


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(AnswerError, match=r"The server at http://127.0.0.1:9 does not answer"):
        ask(ChatClient("http://127.0.0.1:9"), SKY)


def test_a_key_opens_and_a_wrong_one_does_not() -> None:
    with serve(ApiSettings(key_hashes=hash_keys(["right"]))) as server:
        _, answer = ask(ChatClient(server.url, "right"), SKY)
        with pytest.raises(AnswerError, match="valid API key"):
            ask(ChatClient(server.url, "wrong"), SKY)
        with pytest.raises(AnswerError, match="valid API key"):
            asyncio.run(ChatClient(server.url).models())

    assert answer.content == WEATHER


def test_a_broken_stream_is_an_error() -> None:
    with serve(ApiSettings()) as server:

        async def run() -> None:
            body = {**SKY, "ignore_eos": True, "max_tokens": 200}
            async for answer in ChatClient(server.url).answer(body):
                if answer.content:
                    server.thread.engine.runner = None  # type: ignore[assignment]

        with pytest.raises(AnswerError, match="replica failed"):
            asyncio.run(run())


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"error": 5}'])
def test_a_refusal_of_another_shape_is_shown_as_it_is(content: bytes) -> None:
    said = problem_of(httpx.Response(502, content=content))

    assert said.startswith("The server answered 502")


def test_what_goes_to_this_machine_goes_through_no_proxy(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert asyncio.run(ChatClient(server.url).models()) == [MODEL]
