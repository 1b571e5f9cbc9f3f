"""Alarms about the course of a training: NaN, an exploding gradient, a flat loss. Plain numbers, no torch."""

from __future__ import annotations

import math
import statistics
from collections import deque

EXPLODING = 10.0  # times the running median of the gradient norm
NORMS_KEPT = 50
NORMS_NEEDED = 5
FLAT_LINES = 20  # log lines that a flat loss must last
FLAT_SPREAD = 0.01  # of the loss
LEARNED = 0.02  # nats: below this a flat loss means that there is nothing left to learn


class Alarms:
    """Watches norms and losses; every method returns a sentence to say, or None."""

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=NORMS_KEPT)
        self._losses: deque[float] = deque(maxlen=FLAT_LINES)
        self._flat_said = False

    def norm(self, step: int, value: float) -> str | None:
        """One optimizer step's gradient norm, before clipping."""
        median = statistics.median(self._norms) if len(self._norms) >= NORMS_NEEDED else None
        if math.isfinite(value):
            self._norms.append(value)
        if median is None or value <= EXPLODING * median:
            return None
        return (
            f"step {step}: the gradient norm {value:.3g} is {value / max(median, 1e-12):.0f} times its running median; "
            "when this goes on, lower learning_rate or add warmup_steps"
        )

    def loss(self, step: int, value: float) -> str | None:
        """The loss of one log line."""
        if not math.isfinite(value):
            return f"step {step}: the loss is {value}; the weights learn nothing any more"
        self._losses.append(value)
        if self._flat_said or len(self._losses) < FLAT_LINES:
            return None
        low, high, mean = min(self._losses), max(self._losses), statistics.fmean(self._losses)
        if mean < LEARNED or high - low > FLAT_SPREAD * mean:
            return None
        self._flat_said = True
        return (
            f"step {step}: the loss stays at {mean:.4g} for {FLAT_LINES} log lines; learning_rate may be too low, "
            "or the labels may not follow from the prompts"
        )
