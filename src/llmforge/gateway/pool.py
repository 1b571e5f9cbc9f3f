"""All workers of a gateway: who gets the next request, who is alive, who came and went."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmforge.errors import RecipeError
from llmforge.gateway.placement import replicas
from llmforge.gateway.table import GatewayTable, NameEntry, WorkerEntry, load_table
from llmforge.gateway.worker import Worker
from llmforge.infer.protocol import EngineUnavailable, UnknownModel

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)


class Pool:
    """The workers of the table, those that registered, and the names they serve.

    Args:
        words: where the table was read; its files are read anew when they change.
        changed: called with the new table, so that workers may be started and stopped.
    """

    def __init__(self, table: GatewayTable, words: Sequence[str] = (), changed: Callable[[], None] = lambda: None):
        self.table, self.words, self.changed = table, list(words), changed
        self.workers: dict[str, Worker] = {entry.name: Worker(entry, entry.url) for entry in replicas(table.entries)}
        self._versions = self._look()

    # --- routing ---

    def served(self) -> dict[str, NameEntry]:
        """Names clients may ask for."""
        known = {name for worker in self.workers.values() for name in worker.models}
        hidden = {entry.serves for entry in self.table.names.values()}
        listed = {name: entry for name, entry in self.table.names.items() if entry.serves in known}
        return listed | {name: NameEntry(name) for name in sorted(known - hidden)}

    def find(self, name: str) -> NameEntry:
        """What workers call a name.

        Raises:
            UnknownModel: no worker ever served it.
        """
        served = self.served()
        if name not in served:
            raise UnknownModel(name, list(served))
        return served[name]

    def pick(self, serves: str, tried: Sequence[Worker]) -> Worker | None:
        """The worker with the least to do that has not failed this request yet; among equals the one idle longest.

        Raises:
            EngineUnavailable: no worker that serves it is up, and none was tried.
        """
        able = [worker for worker in self.workers.values() if serves in worker.models]
        free = [worker for worker in able if worker.is_up and worker not in tried]
        if free:
            return min(free, key=lambda worker: (worker.load, worker.last_used))
        if not tried:
            down = "; ".join(f"{worker.name}: {worker.why}" for worker in able)
            raise EngineUnavailable(f"no worker of {serves!r} is up ({down})")
        return None

    # --- coming and going ---

    def register(self, entry: WorkerEntry) -> Worker:
        """Add a worker that came by itself, or hear from it again.

        Raises:
            RecipeError: a worker of the table has the name.
        """
        worker = self.workers.get(entry.name)
        if worker is not None and not worker.is_registered:
            raise RecipeError(f"name: {entry.name!r} is a worker of the gateway's table")
        if worker is None or worker.entry != entry:
            worker = self.workers[entry.name] = Worker(entry, entry.url, is_registered=True)
            log.warning("worker %s registered at %s", entry.name, entry.url)
        worker.heard = time.monotonic()
        return worker

    def leave(self, name: str) -> bool:
        """Strike a registered worker off; requests it has go on."""
        worker = self.workers.get(name)
        if worker is None or not worker.is_registered:
            return False
        del self.workers[name]
        log.warning("worker %s left", name)
        return True

    async def watch(self, session: aiohttp.ClientSession) -> None:
        """Look after the workers until cancelled."""
        while True:
            self.reload()
            self.expire()
            states = {worker: worker.is_up for worker in self.workers.values()}
            await asyncio.gather(*(worker.probe(session) for worker in states))
            for worker, was_up in states.items():
                if worker.is_up != was_up:
                    log.warning("worker %s is %s", worker.name, "up" if worker.is_up else f"down: {worker.why}")
            await asyncio.sleep(self.table.heartbeat_s)

    def expire(self) -> None:
        """Strike off registered workers that were silent for too long."""
        now = time.monotonic()
        for worker in list(self.workers.values()):
            if worker.is_registered and now - worker.heard > self.table.expire_s:
                self.leave(worker.name)

    def reload(self) -> None:
        """Take over a table that was changed on disk; a broken one is said and the old one stays."""
        versions = self._look()
        if versions == self._versions:
            return
        self._versions = versions
        try:
            table = load_table(self.words)
            own = {entry.name: entry for entry in replicas(table.entries)}
        except RecipeError as error:
            log.error("the table stays as it was: %s", error)
            return
        for name, worker in list(self.workers.items()):
            if not worker.is_registered and own.get(name) != worker.entry:
                del self.workers[name]
        for name, entry in own.items():
            if name not in self.workers:
                self.workers[name] = Worker(entry, entry.url)
        self.table = table
        self.changed()
        log.warning("the table was read anew: %d workers", len(self.workers))

    def _look(self) -> list[Any]:
        found = []
        for path in self.table.files:
            with contextlib.suppress(OSError):
                status = Path(path).stat()
                found.append((path, status.st_mtime_ns, status.st_size))
        return found
