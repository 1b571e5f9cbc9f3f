"""Connections that cost nobody else anything: slow senders and readers are closed, and one address has so many.

uvicorn limits how long a connection may idle between two requests, and nothing else of this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmforge.serve.errors import ApiError

log = logging.getLogger(__name__)
HEAD_TIMEOUT_S = 20.0  # for the head of a request
STALL_TIMEOUT_S = 20.0  # for a reader that takes nothing, while more than the buffer waits for it
KEEP_ALIVE_S = 18  # between two requests; longer than clients keep theirs, so that none sends into a closed one
LINGER_S = 1.0  # a refused client may go on sending, so that it reads the answer instead of a reset
PROBE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a peer that vanished is noticed in 30 s
BUFFER_BYTES = 64 << 10


class CarefulProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with deadlines. `for_addresses(n)` makes the class for one server."""

    max_connections = 0
    addresses: Counter[str]

    @classmethod
    def for_addresses(cls, max_connections: int) -> type[CarefulProtocol]:
        """A class that allows so many connections to each address, 0 for any number."""
        return type("CarefulProtocol", (cls,), {"max_connections": max_connections, "addresses": Counter()})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._address = self.client[0] if self.client else ""
        self._is_refused = self._is_counted = False
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        _watch_peer(transport.get_extra_info("socket"))
        if self.max_connections and self.addresses[self._address] >= self.max_connections:
            message = f"one address may have {self.max_connections} connections"
            self._say_and_close(ApiError(429, message, code="too_many_connections", headers={"Retry-After": "1"}))
            return
        self._is_counted = True
        self.addresses[self._address] += 1
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_counted:
            self.addresses[self._address] -= 1
            if not self.addresses[self._address]:
                del self.addresses[self._address]
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self._deadline is not None:  # a head is complete
            self._deadline.cancel()
            self._deadline = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._await_head()

    def pause_writing(self) -> None:
        """The buffer is full."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        self._say_and_close(ApiError(400, msg, code="bad_http"))

    def _await_head(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.abort)

    def _say_and_close(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (
                h11.Response(status_code=error.status, headers=[*headers, *error.headers.items()]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event))
        except h11.LocalProtocolError:  # an answer was under way
            self.transport.close()
            return
        self._is_refused = True
        self.transport.write_eof()
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)


def _watch_peer(connection: Any) -> None:
    """Let the kernel notice a peer that went without a word, and hold little for one that reads slowly."""
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)  # the kernel's own would grow to megabytes
    for name, value in PROBE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
