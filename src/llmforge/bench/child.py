"""Run one command and watch it from outside: when each step ends, CPU time, peak memory, why it ended.

A step's end is the moment its line appears in trainer_log.jsonl, for Forge and for other trainers alike, so neither
side's own clock is trusted. A command that writes no such file is read by the `'loss':` lines it prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

POLL_S = 0.02
LIMIT_EVERY_S = 0.2  # walking the process tree costs some milliseconds
# What is printed just before the first step: by Forge, and by everything built on transformers' Trainer.
READY = re.compile(r"^train: [\d,]+ steps of|Running training")
PRINTED_LOSS = re.compile(r"'loss': '?([-+\d.eE]+|nan)")
OUT_OF_MEMORY = (
    "memory is full", "out of memory", "OutOfMemoryError", "MemoryError", "can't allocate memory",
    "annot allocate memory", "not enough memory",
)  # fmt: skip
LAST_LINES = 12
MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


@dataclass(frozen=True)
class Mark:
    """A moment of a run: seconds since the command was given, and CPU seconds the processes had used."""

    wall_s: float
    cpu_s: float


@dataclass
class Measured:
    """What was seen of one run. `outcome` is ok, oom or failed; `error` says why."""

    outcome: str = "ok"
    error: str = ""
    ready: Mark | None = None
    steps: list[Mark] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)  # one line per step, with its loss
    end: Mark = Mark(0.0, 0.0)
    peak_bytes: int = 0  # resident, of the largest process


def measure(
    command: Sequence[str] | str,
    log_path: Path,
    output_path: Path,
    env: Mapping[str, str],
    num_steps: int,
    limit_bytes: int | None = None,
) -> Measured:
    """Run `command` (a string goes to the shell) to its end, or until it takes more than `limit_bytes`.

    Args:
        log_path: the trainer_log.jsonl it is expected to write.
        output_path: gets what the command prints.
        num_steps: steps the log must show, otherwise the run failed.
    """
    watch = _Watch(command, log_path, output_path, env)
    try:
        watch.follow(limit_bytes)
    finally:
        watch.kill()
    return watch.verdict(num_steps, limit_bytes)


class _Watch:
    """One running command."""

    def __init__(self, command: Sequence[str] | str, log_path: Path, output_path: Path, env: Mapping[str, str]):
        self.seen, self.log_path, self.output_path = Measured(), log_path, output_path
        self.over_limit, self.code, self.printed = False, 0, list[tuple[Mark, float]]()
        self.log_bytes = b""
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, shell=isinstance(command, str), env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
        self.running = True
        self.reader = threading.Thread(target=self._read_output, daemon=True)
        self.reader.start()

    def follow(self, limit_bytes: int | None) -> None:
        look_at = self.started
        while self.running:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.running, self.code = False, os.waitstatus_to_exitcode(status)
                self.process.returncode = self.code
                self.seen.peak_bytes = usage.ru_maxrss * MAXRSS_UNIT
                self.seen.end = Mark(time.perf_counter() - self.started, usage.ru_utime + usage.ru_stime)
            self._read_log()
            if limit_bytes and self.running and time.perf_counter() > look_at:
                look_at = time.perf_counter() + LIMIT_EVERY_S
                if max((_resident(p) for p in _family(self.process.pid)), default=0) > limit_bytes:
                    self.over_limit = True
                    os.killpg(self.process.pid, signal.SIGKILL)
            if self.running:
                time.sleep(POLL_S)
        self.reader.join(timeout=5)  # a grandchild may hold the pipe open

    def kill(self) -> None:
        """End what is left of the command, for example after Ctrl-C here."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.running:
            self.process.wait()

    def now(self) -> Mark:
        spent = 0.0
        for process in _family(self.process.pid):
            with contextlib.suppress(psutil.Error):
                spent += sum(process.cpu_times()[:4])
        return Mark(time.perf_counter() - self.started, spent)

    def _read_log(self) -> None:
        """Take the lines that were added; a line without a loss is a summary, not a step."""
        try:
            size = os.stat(self.log_path).st_size
        except FileNotFoundError:
            return
        if size == len(self.log_bytes):
            return
        mark = self.now() if self.running else self.seen.end
        before, self.log_bytes = self.log_bytes, self.log_path.read_bytes()
        new = self.log_bytes[: self.log_bytes.rfind(b"\n") + 1][before.rfind(b"\n") + 1 :]
        for line in new.decode("utf-8", errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                entry = json.loads(line)
                if "loss" in entry:
                    self.seen.log.append(entry)
                    self.seen.steps.append(mark)

    def _read_output(self) -> None:
        assert self.process.stdout
        with open(self.output_path, "w", encoding="utf-8") as copy:
            for raw in self.process.stdout:
                line = raw.decode("utf-8", errors="replace")
                copy.write(line)
                copy.flush()
                if self.seen.ready is None and READY.search(line):
                    self.seen.ready = self.now()
                if found := PRINTED_LOSS.search(line):
                    self.printed.append((self.now(), float(found[1])))

    def verdict(self, num_steps: int, limit_bytes: int | None) -> Measured:
        seen = self.seen
        if not seen.log:
            seen.steps = [mark for mark, _ in self.printed]
            seen.log = [{"loss": loss} for _, loss in self.printed]
        said = self.output_path.read_text(encoding="utf-8")
        tail = "\n".join(said.splitlines()[-LAST_LINES:])
        # The kernel counts this process's own peak as the child's until the child has loaded its program.
        floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
        if self.over_limit or (limit_bytes and seen.peak_bytes > max(limit_bytes, floor)):
            seen.outcome, seen.error = "oom", f"went over the limit of {(limit_bytes or 0) / 1e9:.2f} GB"
        elif self.code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            seen.outcome, seen.error = "oom", "killed, as the kernel does when the machine's memory is full"
        elif self.code and any(sign in said for sign in OUT_OF_MEMORY):
            seen.outcome, seen.error = "oom", tail
        elif self.code:
            seen.outcome, seen.error = "failed", f"ended with {self.code}:\n{tail}"
        elif len(seen.steps) < num_steps:
            seen.outcome, seen.error = "failed", f"logged {len(seen.steps)} of {num_steps} steps:\n{tail}"
        return seen


def _family(pid: int) -> list[psutil.Process]:
    """The process and its descendants, without those that are gone."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0
