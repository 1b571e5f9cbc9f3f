"""A request's body: read under a cap, then checked, beside the event loop where it is large."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from llmforge.serve.errors import ApiError, validation_error

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
B = TypeVar("B", bound=BaseModel)
BODY_TIMEOUT_S = 20.0
AT_ONCE = 64 << 10  # bytes that are read in less time than handing them to a thread takes


async def receive_body(receive: Receive, max_bytes: int, length: bytes = b"") -> bytes | None:
    """The whole body; None when the client left before its end.

    Args:
        length: the header Content-Length; a body that is called too large is refused unread.

    Raises:
        ApiError: 413 above the cap, noticed while reading; 408 when it does not arrive.
    """
    if length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(int(length[:20]), max_bytes)
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
                if size > max_bytes:
                    raise _too_large(size, max_bytes)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None


def _too_large(size: int, max_bytes: int) -> ApiError:
    message = f"the body has {size} bytes or more; this server takes {max_bytes}"
    return ApiError(413, message, code="body_too_large")


async def read_body(request: Request, kind: type[B]) -> B:
    """The request's body as `kind`.

    Raises:
        ApiError: 415 when it is not called JSON, 422 or 400 with everything that is wrong in it.
    """
    # Only what is called JSON: a web page of another origin can send anything else without asking first.
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json" and not (
        content_type.startswith("application/") and content_type.endswith("+json")
    ):
        raise ApiError(415, "the body must be sent with Content-Type: application/json", code="not_json")
    text = await request.body()
    try:
        if len(text) <= AT_ONCE:
            return kind.model_validate_json(text)
        return await asyncio.to_thread(kind.model_validate_json, text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise validation_error(problems, list(kind.model_fields)) from None
