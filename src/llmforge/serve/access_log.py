"""One JSON line per request, written by a thread so that a full disk or a stopped terminal holds up nobody."""

from __future__ import annotations

import json
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from llmforge.errors import RecipeError

MOST_WAITING = 10_000  # lines that the thread may be behind; more are dropped, and counted in the next one


class AccessLog:
    """Writes to a file, or to stderr.

    Args:
        target: path, or "stderr".
    """

    def __init__(self, target: str):
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._dropped = 0
        self._file = open_log(target)
        self._thread = threading.Thread(target=self._write, name="llmforge-access-log", daemon=True)
        self._thread.start()

    def add(self, line: dict[str, Any]) -> None:
        if self._dropped:
            line = {**line, "dropped_lines": self._dropped}
        try:
            self._lines.put_nowait(line)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what is there; waits a moment for a slow disk."""
        if self._thread.is_alive():
            self._lines.put(None, timeout=5)
            self._thread.join(timeout=5)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                # ASCII escapes: a line stays one line whatever the client sent.
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except (OSError, ValueError):
                self._dropped += 1
        if self._file is not sys.stderr:
            self._file.close()


def open_log(target: str) -> TextIO:
    """The file to append to.

    Raises:
        RecipeError: it cannot be written.
    """
    if target == "stderr":
        return sys.stderr
    try:
        path = Path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"access_log: {target} cannot be written: {error.strerror}") from None
