"""What stands before every route: the key, the size of the body, the time it may take to arrive."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmforge.serve.errors import ApiError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
BODY_TIMEOUT_S = 30.0
# A refused client goes on sending for so long and so much, so that it reads the answer instead of a broken connection.
DRAIN_S = 2.0
DRAIN_BYTES = 64 << 20


class Guard:
    """ASGI middleware: 401 without the key, 413 above the cap (noticed while reading), 408 for a body that never ends.

    A body under the cap is read whole and handed on, so nothing behind this can be made to wait for a slow sender.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], api_key: str | None, max_body_bytes: int):
        self.app, self.api_key, self.max_body_bytes = app, api_key, max_body_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if scope["path"].startswith("/v1"):
                self._check_key(headers.get(b"authorization", b""))
            body = await self._read(headers.get(b"content-length", b""), receive)
        except ApiError as error:
            await _refuse(error, receive, send)
            return
        if body is None:
            return
        handed_on = False

        async def receive_again() -> MutableMapping[str, Any]:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_again, send)

    def _check_key(self, authorization: bytes) -> None:
        if self.api_key is None:
            return
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self.api_key.encode()):
            message = "a key is needed: Authorization: Bearer KEY" if not key else "the key is wrong"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _read(self, length: bytes, receive: Receive) -> bytes | None:
        """The body; None when the client left.

        Raises:
            ApiError: 413 or 408.
        """
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large(int(length))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.max_body_bytes:
                        raise self._too_large(size)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None

    def _too_large(self, size: int) -> ApiError:
        message = f"the body has {size} bytes or more; this server takes {self.max_body_bytes}"
        return ApiError(413, message, code="body_too_large")


async def _refuse(error: ApiError, receive: Receive, send: Send) -> None:
    """Answer, then swallow what the client still sends."""
    response = error.response()
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
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
