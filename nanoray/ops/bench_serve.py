"""A served model under load, with the formulas of `vllm bench serve`.

TTFT: from the request to the first event with text. TPOT: (last - first) / (tokens - 1), of each
request. ITL: between two events with text, pooled. Goodput: requests per second that met every
target. Failed and refused requests are counted, and are in none of the latencies.
"""

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from nanoray.config import InputError, require_no_secret, require_positive
from nanoray.serve.serve_config import api_keys, is_loopback

WORDS = (
    *("the", "of", "and", "people", "government", "time", "year", "law", "public", "country"),
    *("house", "letter", "day", "morning", "father", "sister", "island", "river", "north"),
)


@dataclass(frozen=True, kw_only=True)
class ServeBench:
    """Send requests to a server: as many at once, or so many per second."""

    url: str = "http://127.0.0.1:8000"
    """Address of the server; its API key is read from NANORAY_API_KEYS."""
    model: str | None = None
    """Which of the served models; by default the first."""
    num_requests: int = 64
    """How many are sent, besides those that warm up."""
    concurrency: int = 16
    """Closed loop: so many at once, each followed by the next."""
    rate: float | None = None
    """Open loop instead: so many per second, at random moments (Poisson)."""
    prompt_words: int = 24
    """Length of a prompt."""
    answer_tokens: int = 32
    """Length of an answer, which the end of a turn does not cut."""
    warm_up: int = 2
    """Requests that are sent before, and not counted."""
    seed: int = 0
    """Prompts and moments follow from it."""
    ttft_seconds: float | None = None
    """Target of the time to the first token, for goodput."""
    tpot_seconds: float | None = None
    """Target of the time per token after it, for goodput."""

    def __post_init__(self) -> None:
        require_no_secret(self.url)
        for name in ("num_requests", "concurrency", "prompt_words"):
            require_positive(name, getattr(self, name))
        require_positive("answer_tokens", self.answer_tokens, least=2)
        if self.rate is not None and self.rate <= 0:
            raise InputError(f"--rate {self.rate} must be above 0.")


@dataclass
class Request:
    """One request, and when what came of it."""

    sent: float
    status: int = 0
    """HTTP's; 0 where the connection failed."""
    error: str = ""
    events: list[float] = field(default_factory=list)
    """When text came."""
    ended: float = 0.0
    num_tokens: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether the answer came to its end."""
        return self.status == 200 and not self.error and bool(self.events)

    @property
    def ttft(self) -> float:
        """Seconds to the first text."""
        return self.events[0] - self.sent

    @property
    def tpot(self) -> float:
        """Seconds per token after the first."""
        return (self.events[-1] - self.events[0]) / max(1, self.num_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between events."""
        return [b - a for a, b in zip(self.events, self.events[1:], strict=False)]


def bench_serve(config: ServeBench) -> str:
    """Run the benchmark; gives one line of JSON."""
    return json.dumps(asyncio.run(run(config)))


async def run(config: ServeBench) -> dict[str, Any]:  # Any: JSON
    """Send all requests, and measure.

    Raises:
        InputError: nobody answers there.
    """
    keys = api_keys()
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    trust = not is_loopback(urlsplit(config.url).hostname or "")  # no proxy to this machine
    async with aiohttp.ClientSession(
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=600),
        connector=aiohttp.TCPConnector(limit=0),
        trust_env=trust,
    ) as client:
        rng = random.Random(config.seed)
        for _ in range(config.warm_up):
            warm = await send(client, config, prompt(rng, config))
            if not warm.is_whole:
                raise InputError(f"{config.url} does not answer: {warm.error or warm.status}.")
        prompts = [prompt(rng, config) for _ in range(config.num_requests)]
        began = time.perf_counter()
        if config.rate is None:
            requests = await closed_loop(client, config, prompts)
        else:
            requests = await open_loop(client, config, prompts, rng)
        return summary(config, requests, time.perf_counter() - began)


async def closed_loop(
    client: aiohttp.ClientSession, config: ServeBench, prompts: list[str]
) -> list[Request]:
    """Keep as many requests under way as are wanted."""
    left = iter(prompts)

    async def one_after_another() -> list[Request]:
        return [await send(client, config, text) for text in left]

    lists = await asyncio.gather(*(one_after_another() for _ in range(config.concurrency)))
    return [request for requests in lists for request in requests]


async def open_loop(
    client: aiohttp.ClientSession, config: ServeBench, prompts: list[str], rng: random.Random
) -> list[Request]:
    """Send requests at random moments, whether or not earlier ones have ended."""
    assert config.rate is not None, "asked for"
    tasks = []
    due = time.perf_counter()
    for text in prompts:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(send(client, config, text)))
        due += rng.expovariate(config.rate)
    return list(await asyncio.gather(*tasks))


def prompt(rng: random.Random, config: ServeBench) -> str:
    """Draw a prompt."""
    return " ".join(rng.choices(WORDS, k=config.prompt_words))


async def send(client: aiohttp.ClientSession, config: ServeBench, text: str) -> Request:
    """Send one request, and note when its text comes."""
    body = {
        "model": config.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": config.answer_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = Request(time.perf_counter())
    try:
        async with client.post(f"{config.url}/v1/chat/completions", json=body) as response:
            request.status = response.status
            async for line in response.content:
                if request.status == 200 and line.startswith(b"data: {"):
                    note(request, json.loads(line.removeprefix(b"data: ")))
    except (aiohttp.ClientError, TimeoutError) as error:
        request.error = type(error).__name__
    request.ended = time.perf_counter()
    return request


def note(request: Request, chunk: dict[str, Any]) -> None:  # Any: JSON
    """Note what one event brings."""
    if "error" in chunk:
        request.error = chunk["error"]["message"]
    elif chunk.get("usage"):
        request.num_tokens = chunk["usage"]["completion_tokens"]
    elif any(choice["delta"].get("content") for choice in chunk["choices"]):
        request.events.append(time.perf_counter())


def summary(
    config: ServeBench, requests: list[Request], seconds: float
) -> dict[str, Any]:  # Any: JSON
    """Give counts, rates and percentiles."""
    whole = [request for request in requests if request.is_whole]
    refused = [request for request in requests if request.status == 429]
    good = [
        request
        for request in whole
        if (config.ttft_seconds is None or request.ttft <= config.ttft_seconds)
        and (config.tpot_seconds is None or request.tpot <= config.tpot_seconds)
    ]
    return {
        "benchmark": "serve",
        "load": f"{config.rate}/s" if config.rate else f"{config.concurrency} at once",
        "seconds": round(seconds, 2),
        "sent": len(requests),
        "answered": len(whole),
        "refused": len(refused),
        "failed": len(requests) - len(whole) - len(refused),
        "requests_per_second": round(len(whole) / seconds, 3),
        "tokens_per_second": round(sum(r.num_tokens for r in whole) / seconds, 2),
        "goodput_per_second": round(len(good) / seconds, 3),
        "ttft_ms": percentiles([r.ttft for r in whole]),
        "tpot_ms": percentiles([r.tpot for r in whole]),
        "itl_ms": percentiles([gap for r in whole for gap in r.gaps]),
        "refused_after_ms": percentiles([r.ended - r.sent for r in refused]),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Give median, 99th percentile and mean in milliseconds; nothing where there is nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "median": round(1e3 * statistics.median(ordered), 2),
        "p99": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
        "mean": round(1e3 * statistics.mean(ordered), 2),
    }
