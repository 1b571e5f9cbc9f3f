"""What the steps since the last log line did: tokens, supervised tokens, time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Sums over optimizer steps and all ranks. `take` returns the rates and starts anew."""

    steps: int = 0
    tokens: int = 0
    supervised: int = 0
    total_tokens: int = 0
    total_computed: int = 0
    total_supervised: int = 0
    metrics: dict[str, list[float]] = field(default_factory=dict)  # the stage's own means, one of each step that has it
    last_loss: float = float("nan")  # of the last step, nats
    last_norm: float | None = None  # gradient norm of the last step, before clipping
    started_at: float = field(default_factory=time.perf_counter)
    seen_at: float = 0.0  # time.monotonic() of the last sign of progress, 0 before the first
    longest_s: float = 0.0  # between two such signs

    def touch(self) -> None:
        """Note that work went on: a step, a batch of an evaluation."""
        now = time.monotonic()
        if self.seen_at:
            self.longest_s = max(self.longest_s, now - self.seen_at)
        self.seen_at = now

    def add(self, tokens: int, computed: int, supervised: int, means: dict[str, float]) -> None:
        """Count a step: tokens of its rows, tokens computed for them (fewer where rows share some), tokens learned.

        `means` are its loss and the stage's own metrics.
        """
        self.touch()
        self.steps += 1
        self.tokens += tokens
        self.supervised += supervised
        self.last_loss = means["loss"]
        for name, value in means.items():
            if name != "loss":
                self.metrics.setdefault(name, []).append(value)
        self.total_tokens += tokens
        self.total_computed += computed
        self.total_supervised += supervised

    def skip_time(self, seconds: float) -> None:
        """Leave out time that was not spent on steps: evaluation, saving."""
        self.started_at += seconds

    def take(self) -> dict[str, float]:
        """tokens_per_second (padding not counted), supervised_tokens, mean step_ms and metrics since the last call."""
        now = time.perf_counter()
        elapsed = max(now - self.started_at, 1e-9)
        taken = {
            "tokens_per_second": round(self.tokens / elapsed, 1),
            "supervised_tokens": self.supervised,
            "step_ms": round(1000 * elapsed / max(self.steps, 1), 1),
        }
        taken |= {name: sum(values) / len(values) for name, values in self.metrics.items()}
        self.metrics = {}
        self.steps = self.tokens = self.supervised = 0
        self.started_at = now
        return taken
