"""Every route of a server with keys, asked with and without one."""

import base64
import re
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from starlette.routing import BaseRoute

from nanoray.serve.settings import ApiSettings, hash_keys
from tests.serve.server import LocalServer, serve

KEY, WRONG = secrets.token_urlsafe(20), secrets.token_urlsafe(20)
NOT_THERE = ("/docs", "/redoc", "/openapi.json", "/nowhere", "/health/", "/health/x", "//health")
"""Whoever has no key is not told that they are not there."""


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalServer]:
    settings = ApiSettings(key_hashes=hash_keys([KEY]), cors_origins=("https://a.example",))
    with serve(settings, page=True) as server:
        yield server


def questions(routes: Iterable[BaseRoute], above: str = "") -> Iterator[tuple[str, str]]:
    """List the methods and paths of all routes, also of what is mounted or included."""
    for route in routes:
        path = above + re.sub(r"\{[^}]*\}", "x", getattr(route, "path", ""))
        within = getattr(route, "original_router", None) or getattr(route, "app", None)
        yield from questions(getattr(within, "routes", ()), path)
        for method in {*(getattr(route, "methods", None) or ("GET",)), "HEAD", "OPTIONS"}:
            yield method, path or "/"


def all_questions(server: LocalServer) -> list[tuple[str, str]]:
    app: Any = server.recorder.app  # FastAPI's, which the recorder stands before
    asked = set(questions(app.routes)) | {("GET", path) for path in NOT_THERE}
    return sorted(asked - {(method, "/health") for method in ("GET", "HEAD", "OPTIONS")})


@pytest.mark.parametrize(
    "header",
    [None, f"Bearer {WRONG}", basic(WRONG), f"Bearer {KEY}x"],
    ids=["no key", "wrong", "wrong password", "longer"],
)
def test_without_a_key_every_route_but_health_answers_401(
    guarded: LocalServer, header: str | None
) -> None:
    asked = all_questions(guarded)
    paths = {path for _, path in asked}
    headers = {} if header is None else {"Authorization": header}

    with httpx.Client(base_url=guarded.url, headers=headers, timeout=60) as client:
        answers = {
            (method, path): client.request(method, path, params={"key": KEY})
            for method, path in asked
        }
        health = client.get("/health").status_code

    assert {
        question: a.status_code for question, a in answers.items() if a.status_code != 401
    } == {}
    assert not [q for q, a in answers.items() if WRONG in a.text + str(a.headers)]
    assert paths >= {"/", "/chat/config", "/chat/gradio_api/info", "/v1/completions", "/metrics"}
    assert len(paths) > 40
    assert health == 200


@pytest.mark.parametrize("header", [f"Bearer {KEY}", basic(KEY)], ids=["key", "password"])
def test_with_a_key_the_page_and_the_api_are_there(guarded: LocalServer, header: str) -> None:
    headers = {"Authorization": header}

    statuses = {
        path: guarded.get(path, headers=headers, follow_redirects=True).status_code
        for path in ("/", "/chat/config", "/v1/models", "/metrics")
    }

    assert set(statuses.values()) == {200}


def test_a_browser_is_asked_for_the_key_and_a_page_elsewhere_may_ask_first(
    guarded: LocalServer,
) -> None:
    page = guarded.get("/chat")
    asks_first = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{guarded.url}/v1/completions", headers=asks_first, timeout=60)
    stranger = asks_first | {"Origin": "https://b.example"}
    refused = httpx.options(f"{guarded.url}/v1/completions", headers=stranger, timeout=60)

    assert page.headers["WWW-Authenticate"].startswith("Basic")
    assert preflight.status_code == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in refused.headers
