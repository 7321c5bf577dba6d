"""A client of the public API: an answer as it grows. The chat page and `jobs/chat.py` use it."""

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from nanoray.serve.serve_config import is_loopback

CONNECT_SECONDS, READ_SECONDS = 10.0, 600.0


class AnswerError(Exception):
    """The server gave no answer, or broke it off; the text says why."""


@dataclass
class Answer:
    """What has come of an answer so far."""

    content: str = ""
    tool_events: list[dict[str, Any]] = field(default_factory=list)  # Any: JSON
    num_tokens: int = 0
    finish_reason: str | None = None
    began: float = field(default_factory=time.monotonic)
    first_token_at: float | None = None
    last_token_at: float | None = None

    def add(self, chunk: dict[str, Any]) -> None:  # Any: JSON
        """Take one chunk of the stream."""
        if chunk.get("usage"):
            self.num_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self.last_token_at = time.monotonic()
            self.first_token_at = self.first_token_at or self.last_token_at
            self.content += delta.get("content") or ""
            self.tool_events += delta.get("tool_events") or []
            self.finish_reason = choice["finish_reason"] or self.finish_reason

    def speed(self) -> str:
        """Tell how long it was and how fast it came."""
        if self.first_token_at is None or self.last_token_at is None or not self.num_tokens:
            return ""
        seconds = self.last_token_at - self.first_token_at
        rate = f", {(self.num_tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 else ""
        cut = ", cut off" if self.finish_reason == "length" else ""
        return (
            f"{self.num_tokens} tokens{rate}, first after "
            f"{self.first_token_at - self.began:.2f} s{cut}"
        )


class ChatClient:
    """Talks to one server."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Name the server, as http://127.0.0.1:8000; nothing is asked yet."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.timeout = httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)

    def _open(self) -> httpx.AsyncClient:
        """Open a client; what goes to this machine goes through no proxy."""
        trust = not is_loopback(httpx.URL(self.url).host)
        return httpx.AsyncClient(headers=self.headers, timeout=self.timeout, trust_env=trust)

    async def models(self) -> list[str]:
        """List what can be talked to.

        Raises:
            AnswerError: nobody answers, or the key is wrong.
        """
        async with self._open() as client:
            try:
                response = await client.get(f"{self.url}/v1/models")
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            if response.is_error:
                raise AnswerError(problem_of(response))
            return [model["id"] for model in response.json()["data"]]

    async def room(self, body: dict[str, Any]) -> int:  # Any: JSON
        """Give how many tokens an answer to some messages could have; below 1 if none.

        Raises:
            AnswerError: as its text says.
        """
        asked = {"model": body.get("model"), "messages": body["messages"]}
        async with self._open() as client:
            try:
                response = await client.post(f"{self.url}/tokenize", json=asked)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error
            if response.is_error:
                raise AnswerError(problem_of(response))
            return int(response.json()["max_model_len"]) - int(response.json()["count"])

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[Answer]:  # Any: JSON
        """Yield the answer each time it has grown; closing this ends it at the server.

        Raises:
            AnswerError: as its text says.
        """
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answer = Answer()
        async with self._open() as client:
            try:
                async with client.stream(
                    "POST", f"{self.url}/v1/chat/completions", json=body
                ) as response:
                    if response.is_error:
                        await response.aread()
                        raise AnswerError(problem_of(response))
                    async for chunk in chunks_of(response):
                        answer.add(chunk)
                        yield answer
            except httpx.HTTPError as error:
                raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> AnswerError:
        return AnswerError(f"The server at {self.url} does not answer ({type(error).__name__}).")


async def chunks_of(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:  # Any: JSON
    """Read the events of a stream up to its end.

    Raises:
        AnswerError: an event is an error, or the stream ends without saying so.
    """
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        content = line.removeprefix("data: ")
        if content == "[DONE]":
            return
        chunk = json.loads(content)
        if "error" in chunk:
            raise AnswerError(chunk["error"]["message"])
        yield chunk
    raise AnswerError("The server broke the answer off.")


def problem_of(response: httpx.Response) -> str:
    """Read what an answer that is an error says."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The server answered {response.status_code}: {response.text[:200]}"
