"""What the server tells Prometheus, under the names that dashboards for vLLM look for."""

import time
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nanoray.serve.backend import Step

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
SILENT_SECONDS = 60
"""An engine that brought nothing for so long is left out: it is idle, or gone."""
ANSWER_BUCKETS = (0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640)


class ServerMetrics:
    """Counts requests and tokens, and measures how long they take."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._heard: dict[tuple[str, str], float] = {}
        label = ["model_name"]

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, [*label, *labels], registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vllm:{name}", text, [*label, *labels], registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}", text, label, buckets=buckets, registry=self.registry)

        self.running = gauge("num_requests_running", "Answers that have begun.")
        self.waiting = gauge("num_requests_waiting", "Answers that have not begun.")
        self.kv_usage = gauge(
            "kv_cache_usage_perc", "Share of its KV cache in use, 0 to 1.", "engine"
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generation_tokens = counter("generation_tokens", "Tokens of answers.")
        self.success = counter("request_success", "Answers that ended.", "finished_reason")
        self.refused = counter("request_refused", "Requests that were refused.", "status")
        self.first_token = histogram(
            "time_to_first_token_seconds",
            "From the request to its first token.",
            FIRST_TOKEN_BUCKETS,
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", TOKEN_BUCKETS
        )
        self.latency = histogram(
            "e2e_request_latency_seconds", "From the request to its end.", ANSWER_BUCKETS
        )

    def observe_engine(self, model: str, step: Step) -> None:
        """Take what a step tells of its engine."""
        engine = (model, step.replica)
        self.kv_usage.labels(*engine).set(step.kv_usage)
        self._heard[engine] = time.monotonic()

    def text(self) -> bytes:
        """Give all of it as Prometheus reads it."""
        now = time.monotonic()
        for engine, heard in list(self._heard.items()):
            if now - heard > SILENT_SECONDS:
                self.kv_usage.remove(*engine)
                del self._heard[engine]
        return generate_latest(self.registry)

    def watch(self, model: str, num_prompt_tokens: int, num_samples: int) -> "Watch":
        """Begin to watch a request."""
        self.prompt_tokens.labels(model).inc(num_prompt_tokens)
        self.waiting.labels(model).inc(num_samples)
        self.running.labels(model).inc(0)
        return Watch(self, model, num_samples)


@dataclass
class Watch:
    """One request, from its admission to its end."""

    metrics: ServerMetrics
    model: str
    num_waiting: int
    num_running: int = 0
    began: float = field(default_factory=time.monotonic)
    last: dict[int, float] = field(default_factory=dict)
    """When each sample got its last token."""

    def observe(self, step: Step) -> None:
        """Take what a step brought."""
        metrics, now = self.metrics, time.monotonic()
        metrics.observe_engine(self.model, step)
        metrics.generation_tokens.labels(self.model).inc(len(step.outputs))
        for sample, outputs in step.by_sample().items():
            before = self.last.get(sample)
            if before is None:
                metrics.first_token.labels(self.model).observe(now - self.began)
                self._move(waiting=-1, running=1)
            else:  # tokens that come together share the time since the one before them
                for _ in outputs:
                    metrics.inter_token.labels(self.model).observe((now - before) / len(outputs))
            self.last[sample] = now
            reason = outputs[-1].finish_reason
            if reason is not None:
                metrics.success.labels(self.model, reason).inc()
                self._move(running=-1)

    def end(self) -> None:
        """The request is over, however it ended."""
        self.metrics.latency.labels(self.model).observe(time.monotonic() - self.began)
        self._move(waiting=-self.num_waiting, running=-self.num_running)

    def _move(self, waiting: int = 0, running: int = 0) -> None:
        self.num_waiting += waiting
        self.num_running += running
        self.metrics.waiting.labels(self.model).inc(waiting)
        self.metrics.running.labels(self.model).inc(running)
