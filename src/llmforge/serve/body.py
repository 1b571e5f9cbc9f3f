"""From the bytes of a request to a checked body, beside the event loop where they are many."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from llmforge.serve.errors import ApiError, validation_error

B = TypeVar("B", bound=BaseModel)
AT_ONCE = 64 << 10  # bytes that are read in less time than handing them to a thread takes


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
