"""The end of a server: running requests get some time to finish, then their clients are told that they were cut."""

from __future__ import annotations

import asyncio
import socket

import uvicorn

from llmforge.infer.protocol import Engine


class DrainingServer(uvicorn.Server):
    """Stops its engine while connections are still open; uvicorn alone would cancel them without a word, later on.

    Args:
        drain_s: seconds running requests get; shorter than the config's `timeout_graceful_shutdown`.
    """

    def __init__(self, config: uvicorn.Config, engine: Engine, drain_s: float):
        super().__init__(config)
        self.engine, self.drain_s = engine, drain_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end the requests, close the rest."""
        engine_ends = asyncio.create_task(self.engine.stop(self.drain_s))
        await super().shutdown(sockets)
        await engine_ends
