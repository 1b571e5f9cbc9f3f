"""Loss curves out of trainer_log.jsonl: read as far as the file grew, and thinned so that a page stays quick.

A log of 5,000 lines is parsed once; later looks read what was appended. Thinning keeps the smallest and the largest
value of each stretch, so that a peak is never lost.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

Point = tuple[float, float]  # step, value
SEEN_BYTES = 256  # before the place where reading stopped; other bytes there mean that the log was written anew


@dataclass
class Curve:
    """The numbers of one log, by name: "loss", "eval_loss", "tokens_per_second" and so on."""

    path: Path
    series: dict[str, list[Point]] = field(default_factory=dict)
    last: dict[str, object] = field(default_factory=dict)  # the last line with a loss
    _offset: int = 0
    _before: bytes = b""

    def read(self) -> None:
        """Take in what was appended; a log that was cut or written anew is read from its start."""
        try:
            with open(self.path, "rb") as file:
                if self._offset:
                    file.seek(max(self._offset - SEEN_BYTES, 0))
                    if file.read(min(SEEN_BYTES, self._offset)) != self._before:
                        self._forget()
                        file.seek(0)
                fresh = file.read()
        except FileNotFoundError:
            self._forget()
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._take(line)
        self._offset += len(whole)
        self._before = (self._before + whole)[-min(SEEN_BYTES, self._offset) :] if self._offset else b""

    def _forget(self) -> None:
        self.series, self.last, self._offset, self._before = {}, {}, 0, b""

    def _take(self, line: bytes) -> None:
        try:
            logged = orjson.loads(line)
            step = float(logged["current_steps"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return
        for name, value in logged.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name not in ABOUT:
                self.series.setdefault(name, []).append((step, float(value)))
        if "loss" in logged:
            self.last = logged

    def best(self, name: str = "eval_loss") -> float | None:
        """The smallest value of a series, None when it has none."""
        points = self.series.get(name)
        return min(value for _, value in points) if points else None


ABOUT = ("current_steps", "total_steps", "percentage", "epoch")


class Curves:
    """The curves of many runs; at most `keep` of them stay in memory."""

    def __init__(self, keep: int = 64):
        self.keep = keep
        self._curves: dict[Path, Curve] = {}
        self._lock = threading.Lock()

    def of(self, log: Path) -> Curve:
        """The curve of a log, up to date."""
        with self._lock:
            curve = self._curves.pop(log, None) or Curve(log)
            self._curves[log] = curve
            while len(self._curves) > self.keep:
                self._curves.pop(next(iter(self._curves)))
            curve.read()
            return curve


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points (at least 4): of each stretch the smallest and the largest value, in their order."""
    if len(points) <= most:
        return list(points)
    stretches = max(most // 2 - 1, 1)
    kept = [points[0]]
    inner = points[1:-1]
    for number in range(stretches):
        part = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        if part:
            low, high = min(part, key=_value), max(part, key=_value)
            kept += [low] if low is high else sorted((low, high))
    return [*kept, points[-1]]


def _value(point: Point) -> float:
    return point[1]


def smooth(points: Sequence[Point], weight: float) -> list[Point]:
    """Exponential mean with `weight` in 0..1 for what came before, without its bias towards 0 at the start."""
    if weight <= 0:
        return list(points)
    out, mean, share = [], 0.0, 0.0
    for step, value in points:
        mean = weight * mean + (1 - weight) * value
        share = weight * share + (1 - weight)
        out.append((step, mean / share))
    return out
