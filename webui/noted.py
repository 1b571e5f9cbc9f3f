"""`python -m llmforge.webui.noted FOLDER WORD...`: run forge-cli, and leave its exit code in FOLDER/exit.json.

A job that the board starts is this process, in a session of its own, so that no end of the board touches it. SIGTERM
and SIGINT are handed to forge-cli, which saves what it has.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmforge.runs import atomic_write

EXIT = "exit.json"
HELD = (signal.SIGTERM, signal.SIGINT)  # blocked when this process starts, until its handlers stand


def main(words: list[str]) -> int:
    """Run, wait, note; returns the exit code."""
    return run(Path(words[0]), words[1:])


def run(folder: Path, words: Sequence[str], is_over: Callable[[], bool] | None = None, every_s: float = 10) -> int:
    """Run forge-cli and note its end; it is told to end once `is_over()`, asked every `every_s` seconds, says so.

    Returns:
        Its exit code, which is also in the note, with "idle" where `is_over` ended it.
    """
    told: list[int] = []  # signals that came before there was a child
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: Any) -> None:
        told.append(number)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)

    for number in HELD:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    child = subprocess.Popen([sys.executable, "-m", "llmforge.cli", *words], stdin=subprocess.DEVNULL)
    if told:
        child.send_signal(told[-1])
    idle = is_over is not None and _watch(child, is_over, every_s)
    code = child.wait()
    code = 128 - code if code < 0 else code
    atomic_write(folder / EXIT, json.dumps({"code": code, "time": time.time(), **({"idle": True} if idle else {})}))
    return code


def _watch(child: subprocess.Popen[bytes], is_over: Callable[[], bool], every_s: float) -> bool:
    """Wait for the child's end, or tell it to end; whether it was told."""
    while True:
        try:
            child.wait(every_s)
            return False
        except subprocess.TimeoutExpired:
            if is_over():
                child.terminate()
                return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
