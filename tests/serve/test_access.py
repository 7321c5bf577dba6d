"""Keys at the door."""

import asyncio
import base64
from typing import Any

import pytest

from nanoray.serve.access import RequireKey
from nanoray.serve.settings import hash_keys

HASHES = hash_keys(["first-key", "second-key"])


def ask(
    headers: dict[str, str] | None = None,
    *,
    hashes: tuple[str, ...] = HASHES,
    cors_origins: tuple[str, ...] = (),
    **scope: Any,
) -> str | int:
    """Send a request to a guarded application; gives "passed", or the status of the refusal."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append({"status": "passed"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    whole = {
        "type": "http",
        "path": "/v1/models",
        "method": "GET",
        "headers": raw,
        "client": ("10.0.0.9", 5000),
        **scope,
    }
    asyncio.run(RequireKey(app, hashes, cors_origins)(whole, receive, send))
    first = sent[0]
    return first.get("status") or first["code"]


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"user:{password}".encode()).decode()}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "bearer second-key"},
        basic("first-key"),
    ],
)
def test_each_key_opens(headers: dict[str, str]) -> None:
    assert ask(headers) == "passed"


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 401),
        ({"Origin": "http://evil.example", "Host": "chat.example"}, 401),
        ({"Origin": "null", "Host": "chat.example"}, 401),
        ({"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}, "passed"),
        ({"Origin": "https://chat.example", "Sec-Fetch-Site": "same-origin"}, "passed"),
        ({"Origin": "http://chat.example:8000", "Host": "chat.example:8000"}, "passed"),
        (
            {
                "Origin": "http://chat.example",
                "Host": "127.0.0.1:8000",
                "X-Forwarded-Host": "chat.example",
            },
            "passed",
        ),
    ],
)
def test_the_page_of_another_site_cannot_use_the_login_that_a_browser_keeps(
    headers: dict[str, str], answer: str | int
) -> None:
    cors_origins = ("https://page.example",)

    assert ask({**basic("first-key"), **headers}, cors_origins=cors_origins) == answer
    assert ask({"Authorization": "Bearer first-key", **headers}) == "passed"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic !!!"},
        {"Authorization": f"Bearer {HASHES[0]}"},
        basic("wrong"),
    ],
)
@pytest.mark.parametrize(
    "path", ["/", "/chat", "/v1/models", "/metrics", "/tokenize", "/chat/gradio_api/info"]
)
def test_nothing_else_opens_any_route(headers: dict[str, str], path: str) -> None:
    assert ask(headers, path=path) == 401
    assert ask(headers, path=path, client=("127.0.0.1", 5000)) == 401


def test_health_alone_needs_no_key() -> None:
    assert ask(path="/health") == "passed"
    assert ask(method="OPTIONS") == 401


def test_a_websocket_without_key_is_closed() -> None:
    assert ask(type="websocket") == 1008


@pytest.mark.parametrize(
    ("client", "answer"),
    [
        (("127.0.0.1", 1), "passed"),
        (("::1", 1), "passed"),
        (("10.0.0.9", 1), 401),
        (("testclient", 1), 401),
        (None, 401),
    ],
)
def test_without_keys_only_this_machine_is_answered(client: Any, answer: str | int) -> None:
    assert ask(hashes=(), client=client) == answer


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Host": "127.0.0.1:8000"}, "passed"),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, "passed"),
        ({"Host": "[::1]:8000"}, "passed"),
        ({"Host": "evil.example"}, 401),  # a name that was made to mean this machine
        ({"Host": "127.0.0.1:8000", "Origin": "https://evil.example"}, 401),
        ({"Host": "127.0.0.1:8000", "Origin": "null"}, 401),
        ({"Host": "127.0.0.1:8000", "Origin": "https://[bad"}, 401),
        ({"Host": "127.0.0.1:8000", "Origin": "https://app.example"}, "passed"),
    ],
)
def test_without_keys_pages_of_other_sites_are_not_answered(
    headers: dict[str, str], answer: str | int
) -> None:
    home = ("127.0.0.1", 5000)

    given = ask(headers, hashes=(), cors_origins=("https://app.example",), client=home)

    assert given == answer
