"""As much of HTTP as a plain ASGI application needs: a request's body under a cap, an answer, a client that leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from llmforge.serve.body import Message, Receive, receive_body
from llmforge.serve.errors import ApiError

Scope = Message
Send = Callable[[Message], Awaitable[None]]


class ClientLeft(Exception):
    """The client closed the connection; there is nobody to answer."""


async def read_body(receive: Receive, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413 or 408, see receive_body; what the client still sends goes with its connection.
        ClientLeft: it left before the end.
    """
    try:
        body = await receive_body(receive, max_bytes)
    except ApiError as error:
        error.headers["Connection"] = "close"
        raise
    if body is None:
        raise ClientLeft
    return body


def read_object(body: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        ApiError: 422 when it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(422, "the body is no JSON object", code="invalid_value")
    return found


async def answer(send: Send, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
    """Send JSON, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
    kind = {} if headers and "content-type" in headers else {"content-type": "application/json"}
    pairs = [(key.lower().encode(), value.encode("latin-1")) for key, value in {**kind, **(headers or {})}.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; cancel it when the client leaves before its end."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(client_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
