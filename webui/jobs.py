"""Work that the board starts and that outlives it: a forge-cli process with a log, found again from its folder."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmforge.process import is_running, process_start
from llmforge.runs import atomic_write
from llmforge.webui.board import Board
from llmforge.webui.detached import spawn
from llmforge.webui.noted import EXIT, HELD
from llmforge.webui.refusal import Refusal

ABOUT, LOG = "job.json", "job.log"
MOST_READ = 64_000  # bytes of a log's end that are read


@dataclass(frozen=True)
class Job:
    """One job; `name` is its folder's, so a job started again under a name replaces the one before."""

    folder: Path
    words: list[str]
    pid: int
    process_start: str | None
    started_at: float

    @property
    def is_alive(self) -> bool:
        return is_running(self.pid, self.process_start)

    @property
    def state(self) -> str:
        """running, done, failed, stopped, paused by a budget or gate, or lost: gone without a word."""
        if self.is_alive:
            return "running"
        if (code := self._ended().get("code")) is None:
            return "lost"
        return {0: "done", 3: "paused", 130: "stopped", 143: "stopped"}.get(code, "failed")

    @property
    def took_s(self) -> float:
        """Seconds it has been at work, until now or its end."""
        return float(self._ended().get("time", time.time())) - self.started_at

    def _ended(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / EXIT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def log(self, lines: int = 40) -> str:
        """The end of its log."""
        return tail(self.folder / LOG, lines)

    def stop(self) -> None:
        """Let it save what it has, and end."""
        if self.is_alive:
            os.kill(self.pid, signal.SIGTERM)


def start_job(board: Board, name: str, words: Sequence[str]) -> Job:
    """Start `forge-cli WORDS` in the project folder.

    Raises:
        Refusal: a job of this name is running.
    """
    folder = board.own / "jobs" / re.sub(r"[^\w.-]+", "_", name)[:100]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if (before := find_job(board, name)) and before.is_alive:
            raise Refusal("common.job_running", name=name)
        (folder / EXIT).unlink(missing_ok=True)
        command = [sys.executable, "-m", "llmforge.webui.noted", str(folder), *words]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)  # until it can note that it was told to end
        try:
            process = spawn(board, command, folder / LOG)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        about: dict[str, Any] = {
            "words": list(words),
            "pid": process.pid,
            "process_start": process_start(process.pid),
            "started_at": time.time(),
        }
        atomic_write(folder / ABOUT, json.dumps(about, indent=1))
    return Job(folder, **about)


def find_job(board: Board, name: str) -> Job | None:
    """The job of a name, None where there was none."""
    folder = board.own / "jobs" / re.sub(r"[^\w.-]+", "_", name)[:100]
    try:
        return Job(folder, **json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def tail(path: Path, lines: int) -> str:
    """The last lines of a text file of any length."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - MOST_READ, 0))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:])
