"""A thread that writes the heartbeat into run.json, and says where every thread stands when the steps stop coming."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator

from llmforge.runs import RunDir
from llmforge.train.console import Console
from llmforge.train.meter import Meter

EVERY_S = 5.0
STALLED_AFTER_S = 900.0  # longer than a step of any size we know; 20 usual steps when those take longer


@contextlib.contextmanager
def heartbeat(run: RunDir, meter: Meter, console: Console) -> Iterator[None]:
    """Beat while the block runs."""
    over = threading.Event()
    thread = threading.Thread(target=_beat, args=(run, meter, console, over), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(run: RunDir, meter: Meter, console: Console, over: threading.Event) -> None:
    said_for = 0.0
    while not over.wait(EVERY_S):
        with contextlib.suppress(OSError):  # a full disk must not end the run; the next save will say it
            run.heartbeat()
        if meter.seen_at and meter.seen_at != said_for:
            idle = time.monotonic() - meter.seen_at
            if idle > max(STALLED_AFTER_S, 20 * meter.longest_s):
                said_for = meter.seen_at
                console.say(f"alarm: no step for {idle / 60:.0f} minutes; this is where the program stands:")
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
