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
from pathlib import Path
from typing import Any

from llmforge.runs import atomic_write

EXIT = "exit.json"
HELD = (signal.SIGTERM, signal.SIGINT)  # blocked when this process starts, until its handlers stand


def main(words: list[str]) -> int:
    """Run, wait, note; returns the exit code."""
    folder = Path(words[0])
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
    child = subprocess.Popen([sys.executable, "-m", "llmforge.cli", *words[1:]], stdin=subprocess.DEVNULL)
    if told:
        child.send_signal(told[-1])
    code = child.wait()
    code = 128 - code if code < 0 else code
    atomic_write(folder / EXIT, json.dumps({"code": code, "time": time.time()}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
