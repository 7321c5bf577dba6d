"""What of a client's headers Ray Serve's proxy gets to see."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from nanoray.serve.proxy_headers import PlainHeaders, middlewares


def passed_on(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    asyncio.run(PlainHeaders(app)({"type": "http", "headers": headers}, receive, send))
    return seen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-request-timeout-seconds", b"0.5"),
        (b"X-Request-Disconnect-Disabled", b"?1"),
        (b"x_session_id", b"a"),
        (b"serve_multiplexed_model_id", b"\xff"),
        (b"x-request-id", b"\xff"),
        (b"x-request-id", b"a" * 129),
    ],
)
def test_what_steers_the_proxy_is_taken_away(name: bytes, value: bytes) -> None:
    plain = (b"authorization", b"Bearer sk-1")

    assert passed_on([plain, (name, value)]) == [plain]


def test_other_headers_stay_as_they_are() -> None:
    headers = [(b"x-request-id", b"run-7"), (b"accept", b"text/\xe9"), (b"cookie", b"a=b")]

    assert passed_on(headers) == headers


def test_serve_gets_what_it_asks_for() -> None:
    [given] = middlewares()
    cls: object = given.cls

    assert cls is PlainHeaders
