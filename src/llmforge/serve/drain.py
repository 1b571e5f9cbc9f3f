"""The end of a server: accepted requests get some time to finish, then their clients are told that they were cut."""

from __future__ import annotations

import asyncio
import socket
import time

import uvicorn

from llmforge.serve.serving import Serving

LOOK_S = 0.5
MOST_RESTARTS = 3  # of an engine that died, in RESTART_WINDOW_S; then the process ends, and whoever runs it starts anew
RESTART_WINDOW_S = 600.0


class DrainingServer(uvicorn.Server):
    """On SIGTERM it goes on answering for a while: new requests and /readyz get 503, accepted ones their replies.

    uvicorn alone would close its port at once and cancel what is left without a word, later on. It also starts an
    engine anew that has died: `engine_is_lost` says that this did not help.

    Args:
        drain_s: seconds accepted requests get; shorter than the config's `timeout_graceful_shutdown`.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving, drain_s: float):
        super().__init__(config)
        self.serving, self.drain_s = serving, drain_s
        self.engine_is_lost = False
        self._restarts: list[float] = []
        self._restarting: asyncio.Task[None] | None = None

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if not self.serving.engine.stats().ready and self._restarting is None:
            self._restarting = asyncio.create_task(self._restart())
        return await super().on_tick(counter)

    async def _restart(self) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_S] + [now]
        if len(self._restarts) > MOST_RESTARTS:
            self.engine_is_lost = self.should_exit = True
            return
        try:
            await self.serving.engine.stop()
            await self.serving.engine.start()
        except Exception:
            self.engine_is_lost = self.should_exit = True
            raise
        self._restarting = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end the accepted ones, stop listening, close the rest."""
        ends_at = time.monotonic() + self.drain_s
        self.serving.is_stopping = True
        if not self.engine_is_lost:
            await self.serving.line.drain(self.drain_s, lambda: self.force_exit)
        left_s = 0.0 if self.force_exit else max(0.0, ends_at - time.monotonic())
        engine_ends = asyncio.create_task(self.serving.engine.stop(left_s))
        await super().shutdown(sockets)
        await engine_ends
