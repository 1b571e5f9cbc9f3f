"""The devices of this machine, their free memory, and a line before each: one run at a time works on a device.

No torch: cards are asked through nvidia-smi. A device's line is a folder of tickets and a lock file under $FORGE_HOME,
so that the boards of all projects of this machine wait for each other.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llmforge.process import is_running, process_start
from llmforge.runs import atomic_write

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Device:
    """Something that trains: "cpu", or a card as "cuda:0". Memory in bytes."""

    name: str
    label: str
    free: int
    total: int


def devices() -> list[Device]:
    """The processor, then the cards."""
    memory = psutil.virtual_memory()
    return [
        Device("cpu", f"CPU × {os.cpu_count()}", memory.available, memory.total),
        *_cards(int(time.time() / 5)),
    ]


@functools.lru_cache(maxsize=1)
def _cards(_: int) -> list[Device]:
    """Cards by nvidia-smi; asked at most every five seconds, none where it is absent or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines() if line.count(",") == 3]
    return [
        Device(f"cuda:{number}", name, int(free) << 20, int(total) << 20)
        for number, name, free, total in rows
        if free.isdigit() and total.isdigit()
    ]


def line_folder(device: str) -> Path:
    """Where the tickets and the lock of a device lie."""
    home = Path(os.environ.get("FORGE_HOME") or "~/.cache/forge").expanduser().absolute()
    folder = home / "devices" / device.replace(":", "")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def device_lock(names: Sequence[str], place: int, check: Callable[[], None]) -> Iterator[list[int]]:
    """Wait for one's turn at each of the devices, and hold them; yields file descriptors that carry the locks.

    The smallest `place` goes first. `check` is called while waiting and may raise to leave the line. A process that
    is given the descriptors keeps the devices for as long as it lives, also when this one dies.
    """
    with contextlib.ExitStack() as held:
        yield [held.enter_context(_one(name, place, check)) for name in sorted(names)]


@contextlib.contextmanager
def _one(device: str, place: int, check: Callable[[], None]) -> Iterator[int]:
    import fcntl

    folder = line_folder(device)
    ticket = folder / f"{place:020d}-{os.getpid()}.ticket"
    atomic_write(ticket, json.dumps({"pid": os.getpid(), "start": process_start(os.getpid())}), durable=False)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while not (_first(folder) == ticket.name and _lock(fcntl, descriptor)):
            check()
            time.sleep(LOOK_EVERY_S)
        ticket.unlink(missing_ok=True)
        os.set_inheritable(descriptor, True)
        yield descriptor
    finally:
        ticket.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _first(folder: Path) -> str | None:
    """The first ticket whose process lives; those of dead ones are thrown away."""
    for path in sorted(folder.glob("*.ticket")):
        try:
            holder = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if is_running(holder["pid"], holder["start"]):
            return path.name
        path.unlink(missing_ok=True)
    return None
