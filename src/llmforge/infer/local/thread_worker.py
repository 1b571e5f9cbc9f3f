"""A worker in a thread of this process, over a core that lives here."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from llmforge.infer.local.loop import CoreLoop
from llmforge.infer.local.messages import Died, Quit
from llmforge.infer.local.served import ServedModels

log = logging.getLogger(__name__)


class ThreadWorker:
    """Runs a core; `hear` gets its messages, in the worker's thread."""

    def __init__(self, served: ServedModels):
        self.served = served
        self.max_rows = served.core.max_rows
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, hear: Callable[[Any], None]) -> None:
        self._thread = threading.Thread(target=self._run, args=(hear,), name="llmforge-engine", daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        self._inbox.put(message)

    def stop(self) -> None:
        """End the thread, after the step it is in."""
        if self._thread is not None:
            self._inbox.put(Quit())
            self._thread.join()
            self._thread = None

    def _receive(self, wait: bool) -> Any:
        try:
            return self._inbox.get(block=wait)
        except queue.Empty:
            return None

    def _run(self, hear: Callable[[Any], None]) -> None:
        try:
            CoreLoop(self.served, self._receive, hear).run()
        except BaseException as error:
            log.exception("the engine died")
            hear(Died(f"{type(error).__name__}: {error}"))
