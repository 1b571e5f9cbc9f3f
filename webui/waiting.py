"""The process of a run that the board starts: it waits for the device, runs forge-cli, and notes how that ended.

`python -m llmforge.webui.waiting FOLDER DEVICES PLACE WORD...`, in a session of its own, so that no end of the board
touches it. SIGTERM leaves the line, or is handed to the run, which saves and stops; SIGUSR1 kills the run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from llmforge.runs import LIVE_STATES, RunDir
from llmforge.webui.devices import device_lock

LAST_LINES = 12
KILLED = "killed from the board; what was saved before is still there"


class _Left(Exception):
    """Stopped while waiting."""


class Waiting:
    """One run, from the line before its device to its end."""

    def __init__(self, folder: RunDir, devices: Sequence[str], place: int, words: Sequence[str]):
        self.folder, self.devices, self.place, self.words = folder, devices, place, words
        self.child: subprocess.Popen[bytes] | None = None
        self.stopped = self.killed = False

    def run(self) -> int:
        """Wait, run, and see that run.json holds the end; returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_kill)
        try:
            with device_lock(self.devices, self.place, self._check) as locks:
                self.folder.write_state(state="starting", phase="check", start_time=time.time())
                command = [sys.executable, "-m", "llmforge.cli", *self.words]
                self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=locks)
                self._pass_on()
                code = self.child.wait()
        except _Left:
            self.folder.write_state(state="stopped", phase="", error="taken out of the line before it began")
            return 143
        self._note_end(code)
        return code if code >= 0 else 128 - code

    def _check(self) -> None:
        if self.stopped or self.killed:
            raise _Left

    def _on_stop(self, number: int, frame: object) -> None:
        self.stopped = True
        self._pass_on()

    def _on_kill(self, number: int, frame: object) -> None:
        self.killed = True
        self._pass_on()

    def _pass_on(self) -> None:
        if self.child is None or self.child.poll() is not None:
            return
        if self.killed:
            for process in [*psutil.Process(self.child.pid).children(recursive=True), self.child]:
                process.kill()
        elif self.stopped:
            self.child.send_signal(signal.SIGTERM)

    def _note_end(self, code: int) -> None:
        """What the run could not say itself: that it was killed, or that it ended before it began."""
        state = self.folder.read_state()
        if state.state not in (*LIVE_STATES, "lost"):
            return
        if code == 0:  # a command that keeps no run.json of its own
            self.folder.write_state(state="finished", phase="done", exit_code=0)
        elif self.killed:
            self.folder.write_state(state="stopped", error=KILLED, exit_code=code)
        elif self.stopped and code in (143, 130):
            self.folder.write_state(state="stopped", error="stopped before the first step", exit_code=code)
        else:
            self.folder.write_state(state="failed", error=self._cause(code), exit_code=code)

    def _cause(self, code: int) -> str:
        if code < 0:
            name = signal.Signals(-code).name
            memory = "; the system does that when memory runs out" if -code == signal.SIGKILL else ""
            return f"the process was ended by {name}{memory}"
        with open(self.folder.path / "console.log", encoding="utf-8", errors="replace") as log:
            lines = log.read()[-20_000:].splitlines()
        told = [number for number, line in enumerate(lines) if line.startswith("forge-cli: ")]
        last = lines[told[-1] :] if told else lines[-LAST_LINES:]
        return "\n".join(last[:LAST_LINES]).removeprefix("forge-cli: ") or f"ended with {code}"


def main(words: Sequence[str]) -> int:
    """FOLDER, devices with commas, place in line (nanoseconds), and the words of forge-cli."""
    sys.stdin.read()  # ends when the board has written into run.json who we are
    os.umask(0o022)
    return Waiting(RunDir(Path(words[0])), words[1].split(","), int(words[2]), words[3:]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
