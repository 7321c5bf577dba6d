"""What Prometheus is told of a request."""

import time

import pytest

from nanoray.inference.sequence import FinishReason, TokenOutput
from nanoray.inference.tools import Part
from nanoray.serve.backend import Step
from nanoray.serve.server_metrics import SILENT_SECONDS, ServerMetrics


def step(*samples: int, end: FinishReason | None = None) -> Step:
    outputs = [
        TokenOutput(request=0, sample=sample, token=65, part=Part.TEXT, finish_reason=end)
        for sample in samples
    ]
    return Step(outputs, "r", 0.25)


def values(metrics: ServerMetrics) -> dict[str, float]:
    """Read all samples, without their labels."""
    lines = [line for line in metrics.text().decode().splitlines() if not line.startswith("#")]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_request_waits_runs_and_ends() -> None:
    metrics = ServerMetrics()
    seen = []

    watch = metrics.watch("m", 10, 2)
    seen.append(values(metrics))
    watch.observe(step(0))
    seen.append(values(metrics))
    watch.observe(step(0, 1, end=FinishReason.STOP))
    watch.end()
    seen.append(values(metrics))

    places = [(s["vllm:num_requests_waiting"], s["vllm:num_requests_running"]) for s in seen]
    assert places == [(2, 0), (1, 1), (0, 0)]
    last = seen[-1]
    assert last["vllm:prompt_tokens_total"] == 10
    assert last["vllm:generation_tokens_total"] == 3
    assert last["vllm:request_success_total"] == 2
    assert last["vllm:time_to_first_token_seconds_count"] == 2
    assert last["vllm:inter_token_latency_seconds_count"] == 1
    assert last["vllm:e2e_request_latency_seconds_count"] == 1
    assert last["vllm:kv_cache_usage_perc"] == 0.25


def test_tokens_that_come_together_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, now = ServerMetrics(), time.monotonic()

    watch = metrics.watch("m", 10, 1)
    watch.observe(step(0))
    watch.last[0] = now - 8
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch.observe(step(0, 0, 0, 0))

    after = values(metrics)
    assert after["vllm:inter_token_latency_seconds_count"] == 4
    assert after["vllm:inter_token_latency_seconds_sum"] == pytest.approx(8)


def test_a_request_that_is_left_leaves_nothing_behind() -> None:
    metrics = ServerMetrics()

    watch = metrics.watch("m", 10, 3)
    watch.observe(step(0))
    watch.end()

    after = values(metrics)
    assert (after["vllm:num_requests_waiting"], after["vllm:num_requests_running"]) == (0, 0)


def test_the_cache_of_an_engine_that_is_gone_is_not_told_of_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, now = ServerMetrics(), time.monotonic()
    metrics.watch("m", 10, 1).observe(step(0))
    before = values(metrics)
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * SILENT_SECONDS)

    assert before["vllm:kv_cache_usage_perc"] == 0.25
    assert "vllm:kv_cache_usage_perc" not in values(metrics)
