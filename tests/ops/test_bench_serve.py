"""The load benchmark: formulas on requests with known times, and a run against a server."""

import json
from typing import Any

import pytest

from nanoray.config import InputError
from nanoray.ops.bench_serve import Request, ServeBench, bench_serve, percentiles, summary
from nanoray.serve.settings import ApiSettings
from tests.serve.server import serve


def request(*events: float, tokens: int, status: int = 200, error: str = "") -> Request:
    return Request(1.0, status, error, list(events), 9.0, tokens)


def test_latencies_are_those_of_vllms_formulas() -> None:
    # Sent at 1; text at 1.5, 2 and 3; of 5 tokens.
    one = request(1.5, 2.0, 3.0, tokens=5)

    assert one.ttft == 0.5
    assert one.tpot == pytest.approx((3.0 - 1.5) / 4)
    assert one.gaps == [0.5, 1.0]


def test_only_whole_answers_count_and_the_others_are_told() -> None:
    requests = [
        request(1.5, 2.0, tokens=2),
        request(3.0, 5.0, tokens=2),
        request(tokens=0, status=429),
        request(1.5, tokens=1, error="broken"),
        request(tokens=0, status=0, error="ConnectError"),
    ]

    card = summary(ServeBench(ttft_seconds=1.0), requests, seconds=10.0)

    assert (card["sent"], card["answered"], card["refused"], card["failed"]) == (5, 2, 1, 2)
    assert card["tokens_per_second"] == 0.4
    assert card["requests_per_second"] == 0.2
    assert card["goodput_per_second"] == 0.1
    assert card["ttft_ms"]["median"] == 1250
    assert card["refused_after_ms"]["median"] == 8000


def test_percentiles_of_nothing_are_nothing() -> None:
    assert percentiles([]) == {}
    assert percentiles([0.001, 0.003]) == {"median": 2.0, "p99": 3.0, "mean": 2.0}


@pytest.mark.parametrize("fields", [{"concurrency": 3}, {"rate": 50.0}])
def test_a_real_server_is_measured(fields: dict[str, Any]) -> None:
    with serve(ApiSettings()) as server:
        config = ServeBench(
            url=server.url, num_requests=6, answer_tokens=4, warm_up=1, prompt_words=5, **fields
        )
        card = json.loads(bench_serve(config))

    assert card["answered"] == 6
    assert card["tokens_per_second"] > 0
    assert card["ttft_ms"]["median"] > 0


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 does not answer: ClientConnectorError"):
        bench_serve(ServeBench(url="http://127.0.0.1:9"))


@pytest.mark.parametrize("fields", [{"rate": 0.0}, {"concurrency": 0}, {"answer_tokens": 1}])
def test_what_cannot_be_measured_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ServeBench(**fields)
