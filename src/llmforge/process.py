"""Processes of this machine: which one is meant by an id, whether it still runs, and a quick start of this one."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path


def process_start(pid: int) -> str | None:
    """A text that two processes with the same id do not share, or None when no such process runs.

    On Linux it is the boot's id and the start in clock ticks after boot, which no change of the clock moves.
    """
    proc = Path("/proc")
    if (proc / "self/stat").exists():
        try:
            # The name in brackets may hold spaces and brackets itself, so count from the last one.
            fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        if fields[0] in ("Z", "X"):  # a zombie does no work any more; its parent has not asked for its exit code yet
            return None
        return f"{_boot_id()}:{fields[19]}"
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_running(pid: int, start: str | None) -> bool:
    """Whether the process `pid` runs and is the one that started at `start` (None: any process of that id)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs under another user
    now = process_start(pid)
    return now is not None and (start is None or now == start)


@contextlib.contextmanager
def large_imports() -> Iterator[None]:
    """Import torch and what stands on it in three quarters of the time.

    The libraries make a million objects that all stay; Python's collector would look through them again and again,
    now and whenever it runs later.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now; another program may take it before its use."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])
