"""Progress on stderr: one moving line in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.2


class Progress:
    """Counts `total` things called `what`; shows how many are done, the rate, and the time left."""

    def __init__(self, total: int, what: str, out: TextIO | None = None):
        self.total, self.what = total, what
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.done = 0
        self.started = self.shown = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Count some more, and show it when the last line is old enough or all is done."""
        self.done += count
        now = time.monotonic()
        if self.done == self.total or now - self.shown >= (LIVE_EVERY_S if self.live else PLAIN_EVERY_S):
            self.shown = now
            self._show(now - self.started)

    def _show(self, elapsed_s: float) -> None:
        rate = self.done / max(elapsed_s, 1e-9)
        line = f"{self.done}/{self.total} {self.what}, {rate:.2f}/s, {clock((self.total - self.done) / rate)} left"
        if self.live:
            self.out.write(f"\r\x1b[2K{line}" + "\n" * (self.done == self.total))
        else:
            self.out.write(f"{line}\n")
        self.out.flush()


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
