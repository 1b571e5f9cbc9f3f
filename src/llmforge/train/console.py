"""What a run says on stderr: lines, and in a terminal one moving line below them. Ranks other than 0 say nothing."""

from __future__ import annotations

import sys
import time
from typing import TextIO

BAR_WIDTH = 24
LIVE_EVERY_S = 0.2
PLAIN_EVERY_S = 10.0


class Console:
    """`say` prints a line, `live` redraws the moving line; without a terminal it prints a plain line now and then."""

    def __init__(self, out: TextIO | None = None, silent: bool = False):
        self.out, self.silent = out or sys.stderr, silent
        self.terminal = not silent and self.out.isatty()
        self._moving = False
        self._shown_at = 0.0

    def say(self, text: str) -> None:
        if self.silent:
            return
        self.out.write(("\r\x1b[2K" if self._moving else "") + text + "\n")
        self.out.flush()
        self._moving = False

    def live(self, text: str, *, last: bool = False) -> None:
        """Show how far the work is; `last` always shows."""
        now = time.monotonic()
        if self.silent or (not last and now - self._shown_at < (LIVE_EVERY_S if self.terminal else PLAIN_EVERY_S)):
            return
        self._shown_at = now
        if self.terminal and not last:
            self.out.write(f"\r\x1b[2K{text}")
            self.out.flush()
            self._moving = True
        else:
            self.say(text)


def bar(done: int, total: int) -> str:
    """ "[######..................]" with the share done."""
    filled = BAR_WIDTH * done // max(total, 1)
    return f"[{'#' * filled}{'.' * (BAR_WIDTH - filled)}]"


def clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03; the form of the times in trainer_log.jsonl is the last one."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
