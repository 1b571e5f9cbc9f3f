"""What /metrics shows, by prometheus-client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmforge.infer.protocol import Engine
from llmforge.serve.degrade import MODES, Switch
from llmforge.serve.line import Line
from llmforge.serve.record import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """The numbers of one app; each app has a registry of its own."""

    def __init__(self, engine: Engine, line: Line, switch: Switch):
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by address, model and status", "path", "model", "status")
        self.prompt = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self.cached = self._counter("cached_tokens", "Tokens of prompts that were not computed again", "model")
        self.completion = self._counter("completion_tokens", "Tokens of replies", "model")
        self.finished = self._counter("finished", "Replies by their end", "model", "reason")
        self.whole = self._histogram("request_seconds", "From the request's head to its end", SECONDS, "path")
        self.waited = self._histogram("queue_seconds", "In line before the engine", SECONDS)
        self.first = self._histogram("first_token_seconds", "From the request's head to its first token", SECONDS)
        self.between = self._histogram("inter_token_seconds", "Between two pieces of a request", TOKEN_SECONDS)
        self._gauge("running", "Requests given to the engine", lambda: line.num_running)
        self._gauge("waiting", "Requests in line", lambda: line.num_waiting)
        self._gauge("engine_running", "Requests the engine works on", lambda: engine.stats().running)
        self._gauge("engine_waiting", "Requests that wait inside the engine", lambda: engine.stats().waiting)
        self._gauge("ready", "1 while the engine takes requests", lambda: engine.stats().ready)
        self._gauge("degraded", f"Degradation: {', '.join(MODES)} as 0 to 3", lambda: MODES.index(switch.mode))

    def add(self, record: Record) -> None:
        """Count a request that has ended."""
        self.requests.labels(record.route, record.model, str(record.status)).inc()
        self.whole.labels(record.route).observe(record.total_s)
        if record.queue_s is not None:
            self.waited.observe(record.queue_s)
        if record.first_s is not None:
            self.first.observe(record.first_s)
        if record.model:
            self.prompt.labels(record.model).inc(record.prompt_tokens)
            self.cached.labels(record.model).inc(record.cached_tokens)
            self.completion.labels(record.model).inc(record.completion_tokens)
            for reason in record.finish:
                self.finished.labels(record.model, reason).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"forge_{name}", help, labels, registry=self.registry)

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"forge_{name}", help, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, help: str, value: object) -> None:
        Gauge(f"forge_{name}", help, registry=self.registry).set_function(value)  # type: ignore[arg-type]
