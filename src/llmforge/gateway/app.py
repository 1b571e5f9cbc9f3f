"""`Gateway`: several workers behind one OpenAI address, as a plain ASGI application."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import aiohttp

from llmforge.errors import ForgeError
from llmforge.gateway.counts import Counts
from llmforge.gateway.http import ClientLeft, Receive, Scope, Send, answer, read_body, read_object, unless_client_leaves
from llmforge.gateway.pool import Pool
from llmforge.gateway.relay import Relay, new_session, stop_task
from llmforge.gateway.table import read_worker
from llmforge.infer.protocol import EngineUnavailable
from llmforge.serve.errors import ApiError, as_api_error, surprise
from llmforge.serve.keys import Client, Keys

RELAYED = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/score", "/tokenize",
)  # fmt: skip
OPEN = ("/healthz", "/readyz")  # asked by machines that watch, which have no key


class Gateway:
    """The application.

    Args:
        pool: the workers.
        keys: who may ask; admins may register workers. Without any key everybody may ask, and nobody register.
    """

    def __init__(self, pool: Pool, keys: Keys):
        self.pool, self.keys, self.counts = pool, keys, Counts()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            try:
                await self._http(scope, receive, send)
            except ClientLeft:
                pass
            except ApiError as error:
                await refuse(error, send)
            except ForgeError as error:
                await refuse(as_api_error(error), send)
            except Exception as error:
                await refuse(surprise(error), send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Watch the workers from start to end."""
        await receive()
        table = self.pool.table
        self.session: aiohttp.ClientSession = new_session(table.connect_timeout_s, table.timeout_s)
        self.relay = Relay(self.pool, self.counts, self.session)
        await asyncio.gather(*(worker.probe(self.session) for worker in self.pool.workers.values()))
        watching = asyncio.create_task(self.pool.watch(self.session))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stop_task(watching)
        await self.session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
        client = self._client(scope, path)
        if path in RELAYED:
            allow(method, "POST")
            body = await read_body(receive, self.pool.table.max_body_bytes)
            work = self.relay.pass_on(path, body, read_object(body), scope["headers"], send)
            await unless_client_leaves(receive, work)
        elif path == "/v1/models" or path.startswith("/v1/models/"):
            allow(method, "GET")
            await answer(send, 200, self._models(unquote(path.removeprefix("/v1/models").strip("/"))))
        elif path == "/workers":
            allow(method, "GET", "POST")
            if method == "POST":
                await self._register(client, read_object(await read_body(receive, self.pool.table.max_body_bytes)))
            rows = [worker.as_dict() for worker in self.pool.workers.values()]
            await answer(send, 200, {"workers": rows, "heartbeat_s": self.pool.table.beat_s})
        elif path.startswith("/workers/"):
            allow(method, "DELETE")
            check_admin(client)
            name = unquote(path.removeprefix("/workers/"))
            if not self.pool.leave(name):
                raise ApiError(404, f"no worker {name!r} registered here")
            await answer(send, 200, {"left": name})
        elif path == "/healthz":
            await answer(send, 200, {"status": "ok"})
        elif path == "/readyz":
            up = sum(worker.is_up for worker in self.pool.workers.values())
            if not up:
                raise EngineUnavailable("no worker is up")
            await answer(send, 200, {"status": "ready", "workers_up": up, "workers": len(self.pool.workers)})
        elif path == "/metrics":
            page = self.counts.text(self.pool.workers.values())
            await answer(send, 200, page, {"content-type": "text/plain; version=0.0.4; charset=utf-8"})
        else:
            raise ApiError(404, f"no such address: {path}")

    def _client(self, scope: Scope, path: str) -> Client:
        """Who asks.

        Raises:
            ApiError: 401.
        """
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not self.keys.are_asked_for or path in OPEN:
            return Client("anybody")
        client = self.keys.find(given)
        if client is None:
            message = "the key is wrong" if given else "a key is needed: Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return client

    def _models(self, name: str) -> dict[str, Any]:
        """All served names, or one of them."""
        served = self.pool.served()
        cards = []
        for public, entry in ({name: self.pool.find(name)} if name else served).items():
            workers = [worker for worker in self.pool.workers.values() if entry.serves in worker.models]
            card = {**workers[0].models[entry.serves], "id": public, "object": "model"}
            shown = {"title": entry.title, "roles": entry.roles} if entry.title or entry.roles else {}
            cards.append(card | shown | {"workers_up": sum(worker.is_up for worker in workers)})
        return cards[0] if name else {"object": "list", "data": cards}

    async def _register(self, client: Client, row: dict[str, Any]) -> None:
        """A worker says that it is there, for the first time or again."""
        check_admin(client)
        try:
            entry = read_worker(
                {key: value for key, value in row.items() if key in ("name", "url", "slots", "key_env")}
            )
            if entry.url is None or set(row) - {"name", "url", "slots", "key_env"}:
                raise ValueError("expected name, url, slots, key_env")
        except ValueError as error:
            raise ApiError(422, str(error), code="invalid_value") from None
        worker = self.pool.register(entry)
        if not worker.is_up:
            await worker.probe(self.session)


def allow(method: str, *methods: str) -> None:
    """Raises ApiError 405 for another method."""
    if method not in methods:
        raise ApiError(405, f"{method} does not work here", headers={"Allow": ", ".join(methods)})


def check_admin(client: Client) -> None:
    """Raises ApiError 403 for a client that may not change the workers."""
    if not client.is_admin:
        raise ApiError(403, "only a key of an admin may change the workers", code="forbidden")


async def refuse(error: ApiError, send: Send) -> None:
    await answer(send, error.status, json.dumps(error.body()).encode(), error.headers)
