"""Where a run tells how it goes: run.json and stderr, from rank 0 alone."""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

from llmforge.config.dump import spoken
from llmforge.process import process_start
from llmforge.runs import RunDir
from llmforge.train.console import Console


class Report:
    """Phases and states of one run. Other ranks have one too, which says nothing."""

    def __init__(self, run: RunDir, rank: int):
        self.run, self.main = run, rank == 0
        self.console = Console(silent=not self.main)
        self.phase_name = "check"

    def start(self, **about: Any) -> None:
        self.state(
            state="starting", phase="check", pid=os.getpid(), process_start=process_start(os.getpid()),
            host=socket.gethostname(), start_time=time.time(), step=0, total_steps=0, error=None, saved=None,
            alarms=[], command=spoken(sys.argv), **about,
        )  # fmt: skip

    def state(self, **changes: Any) -> None:
        if self.main:
            self.run.write_state(**changes)

    def phase(self, name: str, text: str) -> None:
        """Enter a phase: check, load, tokenise, train, eval, save."""
        self.phase_name = name
        self.state(phase=name)
        self.console.say(f"{name}: {text}")

    def say(self, text: str) -> None:
        self.console.say(text)
