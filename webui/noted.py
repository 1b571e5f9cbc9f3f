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


def main(words: list[str]) -> int:
    """Run, wait, note; returns the exit code."""
    folder = Path(words[0])
    child = subprocess.Popen([sys.executable, "-m", "llmforge.cli", *words[1:]], stdin=subprocess.DEVNULL)

    def pass_on(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    code = child.wait()
    code = 128 - code if code < 0 else code
    atomic_write(folder / EXIT, json.dumps({"code": code, "time": time.time()}))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
