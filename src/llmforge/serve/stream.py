"""Server-sent events, until they end or the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import Response

Message = MutableMapping[str, Any]
PING_S = 15.0  # a comment line after so much silence, so that no proxy takes the connection for dead


class EventStream(Response):
    """A response of one `data:` line per event. When the client leaves, the events are closed at once."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.events = events
        del self.headers["content-length"]

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        sending = asyncio.ensure_future(self._send(send))
        watching = asyncio.ensure_future(_until_client_leaves(receive, send, sending))
        try:
            await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            sending.cancel()
            await asyncio.wait({sending, watching})
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Callable[[Message], Awaitable[None]]) -> None:
        async with aclosing(self.events):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self.events:
                await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_client_leaves(
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
    sending: asyncio.Future[None],
) -> None:
    leaving = asyncio.ensure_future(client_left(receive))
    try:
        while not (await asyncio.wait({leaving}, timeout=PING_S))[0] and not sending.done():
            await send({"type": "http.response.body", "body": b": still here\n\n", "more_body": True})
    finally:
        leaving.cancel()


async def client_left(receive: Callable[[], Awaitable[Message]]) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
