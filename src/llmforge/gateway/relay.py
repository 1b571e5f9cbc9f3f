"""One request on its way through the gateway: to a worker, to another one where the first is lost, and back."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from llmforge.gateway.counts import Counts
from llmforge.gateway.http import Send, answer
from llmforge.gateway.pool import Pool
from llmforge.gateway.worker import Worker
from llmforge.serve.errors import ApiError

PASSED_ON = ("content-type", "accept", "x-request-id")
PASSED_BACK = ("content-type", "retry-after", "x-request-id")
TRY_ANOTHER = (429, 502, 503, 504)  # the worker did not take the request
SAME_AGAIN = 1  # a kept connection may have been closed a moment ago; the worker itself may be well
DONE = b"data: [DONE]\n\n"


class Lost(Exception):
    """The worker was lost before it had begun to answer."""


class Relay:
    """Passes requests to workers. What has begun to answer is never asked for twice."""

    def __init__(self, pool: Pool, counts: Counts, session: aiohttp.ClientSession):
        self.pool, self.counts, self.session = pool, counts, session

    async def pass_on(self, path: str, body: bytes, asked: Mapping[str, Any], headers: Any, send: Send) -> None:
        """Answer a request by a worker of its model.

        Raises:
            UnknownModel, EngineUnavailable: nobody serves the model, or all that do are down.
        """
        model = asked.get("model")
        if not isinstance(model, str):
            raise ApiError(422, "model: is required", param="model", code="invalid_value")
        serves = self.pool.find(model).serves
        if serves != model:
            body = json.dumps({**asked, "model": serves}).encode()
        kept = {name.decode(): value.decode("latin-1") for name, value in headers if name.decode() in PASSED_ON}
        tried: list[Worker] = []
        refusal: tuple[int, bytes, dict[str, str]] | None = None
        again = SAME_AGAIN
        while (worker := self.pool.pick(serves, tried)) is not None:
            tried.append(worker)
            try:
                refused = await self._try(worker, path, body, kept, send)
                if refused is None:
                    return
                refusal = refused
            except Lost as error:
                self.counts.retried.labels(worker.name).inc()
                worker.retried += 1
                await worker.probe(self.session)
                if worker.is_up and again:  # alone or not, it is well: give it one more chance
                    again -= 1
                    tried.remove(worker)
                elif worker.is_up:
                    worker.mark_down(str(error))
        if refusal is not None:
            status, data, its_headers = refusal
            await answer(send, status, data, its_headers)
            return
        raise ApiError(
            503, f"every worker of {model!r} was lost before it answered", code="unavailable",
            headers={"Retry-After": str(round(self.pool.table.heartbeat_s) or 1)},
        )  # fmt: skip

    async def _try(
        self, worker: Worker, path: str, body: bytes, headers: dict[str, str], send: Send
    ) -> tuple[int, bytes, dict[str, str]] | None:
        """One worker: None when the client has its answer, else how the worker refused.

        Raises:
            Lost: it cannot be reached, or its connection ended before the first byte of an answer.
        """
        worker.running += 1
        worker.last_used = began = time.monotonic()
        begun = False
        status = 0
        try:
            async with self.session.post(
                f"{str(worker.url).removesuffix('/v1')}{path}", data=body, headers={**headers, **worker.headers}
            ) as upstream:
                status = upstream.status
                back = {name: upstream.headers[name] for name in PASSED_BACK if name in upstream.headers}
                back["x-forge-worker"] = worker.name
                if not back.get("content-type", "").startswith("text/event-stream"):
                    data = await upstream.read()  # whole before it goes on, so that a loss until here can be mended
                    if status in TRY_ANOTHER:
                        return status, data, back
                    begun = True
                    await answer(send, status, data, back)
                    return None
                part = await upstream.content.readany()
                if not part:
                    raise Lost(f"{worker.name} sent nothing")
                begun = True
                pairs = [(name.encode(), value.encode("latin-1")) for name, value in back.items()]
                await send({"type": "http.response.start", "status": status, "headers": pairs})
                while part:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    part = await upstream.content.readany()
                await send({"type": "http.response.body", "body": b""})
            return None
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if not begun:
                raise Lost(f"{worker.name} was lost ({type(error).__name__})") from error
            await self._cut(worker, error, send)
            return None
        finally:
            worker.running -= 1
            worker.answered += begun
            self.counts.seconds.labels(worker.name).observe(time.monotonic() - began)
            self.counts.requests.labels(worker.name, str(status or "lost")).inc()

    async def _cut(self, worker: Worker, error: Exception, send: Send) -> None:
        """Tell a client in the middle of a stream that the rest will not come."""
        worker.cut += 1
        self.counts.cut.labels(worker.name).inc()
        worker.mark_down(f"lost in the middle of a stream ({type(error).__name__})")
        told = ApiError(502, f"worker {worker.name} was lost in the middle of this reply", code="worker_lost")
        await send(
            {
                "type": "http.response.body",
                "body": b"\n\ndata: " + json.dumps(told.body()).encode() + b"\n\n" + DONE,
                "more_body": False,
            }
        )


def new_session(connect_timeout_s: float, timeout_s: float) -> aiohttp.ClientSession:
    """Connections to workers: as many as there are requests, no cap on a whole reply, none through a proxy."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s, sock_read=timeout_s),
        auto_decompress=False,
    )


async def stop_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
