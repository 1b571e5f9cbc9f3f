"""What stands before every route: the client's key, rights and rate, and how large and how slow its body is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from llmforge.serve.body import Message, Receive, receive_body
from llmforge.serve.errors import ApiError
from llmforge.serve.keys import Client, Keys
from llmforge.serve.rates import Rates

Send = Callable[[Message], Awaitable[None]]
# A refused client goes on sending for so long and so much, so that it reads the answer instead of a broken connection.
DRAIN_S = 2.0
DRAIN_BYTES = 64 << 20
OPEN = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"})
ADMIN = ("/admin/", "/v1/load_lora_adapter", "/v1/unload_lora_adapter")


class Guard:
    """ASGI middleware: 401 without a key, 403 without the right, 429 above the rate, 413 above the cap (noticed while
    reading), 408 for a body that never ends.

    A body under the cap is read whole and handed on, so nothing behind this can be made to wait for a slow sender.

    Args:
        root_path: left out of addresses that begin with it; some proxies keep it and some do not.
        hosts: names a request may be sent to; empty for any.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        keys: Keys,
        rates: Rates,
        max_body_bytes: int,
        root_path: str = "",
        hosts: frozenset[str] = frozenset(),
    ):
        self.app, self.keys, self.rates, self.max_body_bytes = app, keys, rates, max_body_bytes
        self.root_path, self.hosts = root_path, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        state = scope.setdefault("state", {})
        told: dict[str, str] = {}
        try:
            self._check_host(headers.get(b"host", b""))
            path = scope["path"] = scope["path"].removeprefix(self.root_path)
            client = self._client(scope, path, headers.get(b"authorization", b""))
            state["client"] = client
            if "record" in state:
                state["record"].client = client.name
            if scope["method"] == "POST" and not path.startswith(ADMIN):
                told = self.rates.take(client)
            body = await receive_body(receive, self.max_body_bytes, headers.get(b"content-length", b""))
        except ApiError as error:
            if "record" in state:
                state["record"].error = error.code or error.message
            await _refuse(error, receive, send)
            return
        if body is None:
            return
        handed_on = False

        async def receive_again() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send_with_rate(message: Message) -> None:
            if told and message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in told.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await self.app(scope, receive_again, send_with_rate)

    def _check_host(self, host: bytes) -> None:
        if not self.hosts:
            return
        try:
            name = urlsplit(f"//{host.decode('ascii')}").hostname
        except ValueError:
            name = None
        if name not in self.hosts:
            message = f"this server has no key and answers to {', '.join(sorted(self.hosts))} only"
            raise ApiError(403, message, code="wrong_host")

    def _client(self, scope: Message, path: str, authorization: bytes) -> Client:
        """Who asks.

        Raises:
            ApiError: 401 or 403.
        """
        address = scope["client"][0] if scope.get("client") else "local"
        if not self.keys.are_asked_for:
            return Client(address, is_admin=True)
        if path in OPEN:
            return Client(address)
        client = self.keys.find(authorization)
        if client is None:
            message = "the key is wrong" if authorization else "a key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if path.startswith(ADMIN) and not client.is_admin:
            raise ApiError(403, f"the key of {client.name!r} has no right to change the server", code="no_permission")
        return client


async def _refuse(error: ApiError, receive: Receive, send: Send) -> None:
    """Answer, then swallow what the client still sends."""
    error.headers["Connection"] = "close"
    response = error.response()
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    ends_at, size, more = time.monotonic() + DRAIN_S, 0, True
    while more and size < DRAIN_BYTES and (left := ends_at - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(receive(), left)
        except TimeoutError:
            break
        size += len(message.get("body", b""))
        more = message["type"] == "http.request" and message.get("more_body", False)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
