"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from llmforge.gateway.worker import Worker

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Counts:
    """The numbers of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "forge_gateway_requests", "Requests given to a worker, by its status.", ["worker", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.retried = Counter(
            "forge_gateway_retried", "Requests that a worker lost before it answered.", ["worker"],
            registry=self.registry,
        )  # fmt: skip
        self.cut = Counter(
            "forge_gateway_cut", "Streams that a worker lost in the middle.", ["worker"], registry=self.registry
        )
        self.seconds = Histogram(
            "forge_gateway_seconds", "Time a worker had a request.", ["worker"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.up = Gauge("forge_gateway_worker_up", "1: the worker takes requests.", ["worker"], registry=self.registry)
        self.running = Gauge("forge_gateway_running", "Requests a worker has now.", ["worker"], registry=self.registry)

    def text(self, workers: Iterable[Worker]) -> bytes:
        """The page of /metrics."""
        self.up.clear()
        self.running.clear()
        for worker in workers:
            self.up.labels(worker.name).set(worker.is_up)
            self.running.labels(worker.name).set(worker.running)
        return generate_latest(self.registry)
