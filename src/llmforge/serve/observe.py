"""Around every request: its id, its line in the log, its numbers."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from llmforge.serve.access_log import AccessLog
from llmforge.serve.errors import surprise
from llmforge.serve.metrics import Metrics
from llmforge.serve.record import Record
from llmforge.serve.serving import CLIENT_LEFT

GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds; not in the log
Message = MutableMapping[str, Any]


class Observe:
    """ASGI middleware: `scope["state"]["record"]` is the request's Record, x-request-id goes with every answer.

    A client may name its request by the header X-Request-Id.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], metrics: Metrics, log: AccessLog | None):
        self.app, self.metrics, self.log = app, metrics, log

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name.lower() == b"x-request-id"), b"")
        number = given.decode() if GIVEN_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        record = Record(number, scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record

        is_answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                record.status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", number.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            record.error = type(error).__name__
            refusal = surprise(error, number)
            if is_answered:
                raise
            await refusal.response()(scope, receive, send_with_id)
        finally:
            record.total_s = time.monotonic() - record.started_at
            record.status = record.status or CLIENT_LEFT
            record.route = getattr(scope.get("route"), "path", "other")
            self.metrics.add(record)
            if self.log is not None and record.path not in QUIET:
                self.log.add(record.body())
