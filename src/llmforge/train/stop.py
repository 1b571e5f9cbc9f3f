"""Stopping on a signal: the first one ends the step and saves, the second one ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher and a terminal may both pass on the same Ctrl-C; signals so close together are one wish.
SAME_WISH_S = 1.0


class StoppedByUser(BaseException):
    """Training ended on a signal; `saved` names the checkpoint, None when there was nothing to save."""

    def __init__(self, signal_number: int, saved: str | None = None):
        super().__init__(signal_number, saved)
        self.signal_number, self.saved = signal_number, saved

    @property
    def exit_code(self) -> int:
        return 128 + self.signal_number


class StopSignal:
    """Remembers SIGTERM or SIGINT until the step is done; outside of training it raises at once.

    Attributes:
        received: the signal's number, 0 before.
        deferred: True while training runs and can save.
    """

    def __init__(self, on_first: Callable[[int], None], on_second: Callable[[int], None]):
        self.received, self.deferred = 0, False
        self._received_at = 0.0
        self._on_first, self._on_second = on_first, on_second

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Listen while the block runs; outside of the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
            self._on_first(number)
            if not self.deferred:
                raise StoppedByUser(number)
        elif now - self._received_at > SAME_WISH_S:
            self._on_second(number)
            os._exit(128 + number)
