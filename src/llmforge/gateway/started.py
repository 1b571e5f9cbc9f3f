"""Workers that the gateway starts, watches and starts again: `forge-cli api` of a recipe, or a shell line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from llmforge.gateway.pool import Pool
from llmforge.gateway.worker import Worker
from llmforge.process import free_port

log = logging.getLogger(__name__)
POLL_S = 0.2
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a worker that died is started again; doubled each time
WELL_S = 60.0  # a worker that lived so long begins again with the first pause
STOP_S = 35.0


@dataclass(eq=False)
class Started:
    """One process and when it may be started next."""

    worker: Worker
    process: subprocess.Popen | None = None
    began: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    start_at: float = field(default_factory=time.monotonic)


class StartedWorkers:
    """The processes behind the pool's workers that have no URL of their own."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.started: dict[Worker, Started] = {}
        self.follow_table()

    def follow_table(self) -> None:
        """Take up the workers that came into the table, and end those that went."""
        wanted = [worker for worker in self.pool.workers.values() if worker.entry.run or worker.entry.command]
        for worker in wanted:
            self.started.setdefault(worker, Started(worker))
        for worker in [worker for worker in self.started if worker not in wanted]:
            self._signal(self.started.pop(worker), signal.SIGTERM)

    async def watch(self) -> None:
        """Start what is not running, until cancelled."""
        while True:
            for each in list(self.started.values()):
                self._look(each)
            await asyncio.sleep(POLL_S)

    async def stop(self) -> None:
        """End all processes: by SIGTERM, and by force when that takes too long."""
        for each in self.started.values():
            self._signal(each, signal.SIGTERM)
        ends_at = time.monotonic() + STOP_S
        while time.monotonic() < ends_at and any(e.process and e.process.poll() is None for e in self.started.values()):
            await asyncio.sleep(POLL_S)
        for each in self.started.values():
            self._signal(each, signal.SIGKILL)
            if each.process:
                each.process.wait()

    def _look(self, each: Started) -> None:
        now = time.monotonic()
        if each.process is not None and (code := each.process.poll()) is not None:
            self._signal(each, signal.SIGKILL)  # what it left behind
            each.pause_s = FIRST_PAUSE_S if now - each.began > WELL_S else min(each.pause_s * 2, LONGEST_PAUSE_S)
            each.process, each.start_at = None, now + each.pause_s
            each.worker.url = None
            each.worker.mark_down(f"its process ended with {code}; started again in {each.pause_s:g} s")
            log.error("worker %s: %s; see %s", each.worker.name, each.worker.why, self._log_path(each.worker))
        if each.process is None and now >= each.start_at:
            self._start(each)

    def _start(self, each: Started) -> None:
        port = free_port()
        entry = each.worker.entry
        command = (
            entry.command.replace("{port}", str(port))
            if entry.command
            else shlex.join([sys.executable, "-m", "llmforge.cli", "api", *entry.run, "host=127.0.0.1", f"port={port}"])
        )
        env = os.environ | ({"CUDA_VISIBLE_DEVICES": entry.cards} if entry.cards else {})
        path = self._log_path(each.worker)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as output:
            each.process = subprocess.Popen(
                command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env,
                process_group=0,
            )  # fmt: skip
        each.began = time.monotonic()
        each.worker.url = f"http://127.0.0.1:{port}/v1"
        each.worker.mark_down("starting")

    def _signal(self, each: Started, number: signal.Signals) -> None:
        if each.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(each.process.pid, number)

    def _log_path(self, worker: Worker) -> Path:
        return Path(self.pool.table.log_dir) / f"{worker.name}.log"
