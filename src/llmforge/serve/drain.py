"""The end of a server: accepted requests get some time to finish, then their clients are told that they were cut."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import uvicorn

from llmforge.serve.announce import Announcer
from llmforge.serve.serving import Serving

DEAD_S = 20.0  # /readyz says 503 for so long after the engine died; then the process ends, and may be started anew


class DrainingServer(uvicorn.Server):
    """On SIGTERM it goes on answering for a while: new requests and /readyz get 503, accepted ones their replies.

    uvicorn alone would close its port at once and cancel what is left without a word, later on. It also ends when its
    engine has died, since only a new process can be trusted then; `engine_is_lost` says so.

    Args:
        announcer: makes the server known to a gateway from its first answer on, until it stops.
        drain_s: seconds accepted requests get; shorter than the config's `timeout_graceful_shutdown`.
        welcome: called once the server answers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        serving: Serving,
        drain_s: float,
        dead_s: float = DEAD_S,
        welcome: Callable[[], None] = lambda: None,
        announcer: Announcer | None = None,
    ):
        super().__init__(config)
        self.welcome, self.announcer = welcome, announcer
        self.serving, self.drain_s, self.dead_s = serving, drain_s, dead_s
        self.engine_is_lost = False
        self._died_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine, then listen."""
        await super().startup(sockets)
        self.welcome()
        if self.announcer is not None:
            self.announcer.start()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        now = time.monotonic()
        self._died_at = None if self.serving.engine.stats().ready else self._died_at or now
        if self._died_at is not None and now - self._died_at > self.dead_s:
            self.engine_is_lost = self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end the accepted ones, stop listening, close the rest."""
        ends_at = time.monotonic() + self.drain_s
        self.serving.is_stopping = True
        if self.announcer is not None:
            await self.announcer.stop()
        if not self.engine_is_lost:
            await self.serving.line.drain(self.drain_s, lambda: self.force_exit)
        left_s = 0.0 if self.force_exit else max(0.0, ends_at - time.monotonic())
        engine_ends = asyncio.create_task(self.serving.engine.stop(left_s))
        await super().shutdown(sockets)
        await engine_ends
