"""Every error of the API in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from llmforge.errors import ForgeError, nearest
from llmforge.infer.protocol import EngineBusy, EngineUnavailable, RequestError, UnknownModel

log = logging.getLogger(__name__)
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
PARAMS = {"max_new_tokens": "max_tokens", "stop_ids": "stop_token_ids"}  # our names -> those of the wire
RETRY_S = 5  # what a client is told to wait while the engine loads or drains
MOST_PROBLEMS = 5
SHOWN_CHARS = 60


class ApiError(Exception):
    """An answer other than 200; `headers` go with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # ASCII escapes: a message may quote what the client sent, half surrogate pairs included.
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def as_api_error(error: ForgeError) -> ApiError:
    """The answer for what an engine refused or failed at."""
    message = str(error)
    if isinstance(error, EngineBusy):
        wait = {"Retry-After": str(math.ceil(error.retry_after_s))}
        return ApiError(429, message, code="queue_full", headers=wait)
    if isinstance(error, EngineUnavailable):
        return ApiError(503, message, code="unavailable", headers={"Retry-After": str(RETRY_S)})
    if isinstance(error, RequestError):
        param = PARAMS.get(error.param or "", error.param)
        return ApiError(404 if isinstance(error, UnknownModel) else 400, message, param=param, code=error.code)
    return ApiError(500 if error.exit_code == 1 else 400, message)


def validation_error(problems: Sequence[Mapping[str, Any]], known: Sequence[str]) -> ApiError:
    """All problems of a body in one answer: 400 when it only has fields we do not know, else 422.

    Args:
        problems: pydantic's list.
        known: fields of the body, for the nearest name.
    """
    lines = []
    for problem in problems[:MOST_PROBLEMS]:
        place = path(problem["loc"])
        if problem["type"] == "extra_forbidden":
            name = str(problem["loc"][-1])
            hint = nearest(name, known) if len(problem["loc"]) == 1 else ""
            lines.append(f"unknown parameter {place!r}.{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{place}: is required")
        elif problem["type"] == "json_invalid":
            lines.append(f"the body is not JSON: {problem.get('ctx', {}).get('error', '')}")
        else:
            message = str(problem["msg"]).removeprefix("Value error, ")
            lines.append(f"{place}: {message}{given(problem.get('input'))}")
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"and {len(problems) - MOST_PROBLEMS} more")
    only_unknown = all(problem["type"] == "extra_forbidden" for problem in problems)
    return ApiError(
        400 if only_unknown else 422,
        "; ".join(lines),
        param=path(problems[0]["loc"]) or None,
        code="unknown_parameter" if only_unknown else "invalid_value",
    )


def path(loc: Sequence[int | str]) -> str:
    """`messages.0.content` from pydantic's location, whose names of union members are left out."""
    parts = [str(part) for part in loc if part not in ("body", "str") and not (isinstance(part, str) and "[" in part)]
    return ".".join(parts) or "body"


def given(value: Any) -> str:
    """ ", got ..." for short plain values; nothing for long ones, which the client knows."""
    text = repr(value)
    is_plain = value is None or isinstance(value, (str, int, float, bool))
    return f", got {text}" if is_plain and len(text) <= SHOWN_CHARS else ""


def add_handlers(app: FastAPI) -> None:
    """Let every refusal of a route end in OpenAI's shape; Observe does the same for what surprises us."""

    def answer(request: Request, error: ApiError) -> Response:
        if record := request.scope.get("state", {}).get("record"):
            record.error = error.code or error.message
        return error.response()

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(ForgeError)
    async def on_forge_error(request: Request, error: ForgeError) -> Response:
        return answer(request, as_api_error(error))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        messages = {404: f"no such address: {request.url.path}", 405: f"{request.method} does not work here"}
        message = messages.get(error.status_code, str(error.detail))
        return answer(request, ApiError(error.status_code, message, headers=error.headers))


def surprise(error: Exception, number: str = "") -> ApiError:
    """An error of ours: the client gets an id, the log the traceback under it."""
    number = number or uuid.uuid4().hex[:12]
    log.error("error %s", number, exc_info=error)
    return ApiError(500, f"internal error {number}; the server's log has the details", code="internal_error")
