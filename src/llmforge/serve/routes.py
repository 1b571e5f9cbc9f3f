"""The addresses of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import EventSourceResponse

from llmforge.infer.protocol import Engine, EngineUnavailable, ModelCard, Sampling, UnknownModel
from llmforge.serve.replies import Answer, chunks, completion
from llmforge.serve.translate import to_engine
from llmforge.serve.wire import ChatRequest

CLIENT_LEFT = Response(status_code=499)  # nobody reads it; the number is nginx's
router = APIRouter()


@dataclass(frozen=True)
class Serving:
    """What the routes need."""

    engine: Engine
    defaults: Sampling
    deadline_s: float | None
    drain_s: float
    started: int


def get_serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


ServingNow = Annotated[Serving, Depends(get_serving)]


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, request: Request, serving: ServingNow) -> Response:
    """A chat completion, whole or as a stream of server-sent events."""
    engine = serving.engine
    known = [name for card in engine.models() for name in (card.id, *card.aliases)]
    if body.model not in known:
        raise UnknownModel(body.model, known)
    asked = to_engine(body, serving.defaults, engine.capabilities(), deadline_s=serving.deadline_s)
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    with_tools = bool(getattr(asked.prompt, "tools", ()))
    answer = Answer(body.model, with_tools=with_tools, include_usage=include_usage)
    pieces = engine.generate(asked)
    if not body.stream:
        async with aclosing(pieces):
            whole = await unless_client_leaves(request, completion(answer, pieces))
        return CLIENT_LEFT if whole is None else JSONResponse(whole)
    # The first piece is awaited before the status line goes out, so that a refusal keeps its own status.
    first = await unless_client_leaves(request, anext(pieces))
    if first is None:
        await pieces.aclose()
        return CLIENT_LEFT
    return EventSourceResponse(
        chunks(answer, first, pieces),
        sep="\n",
        shutdown_event=anyio.Event(),  # a stream that runs when the server stops may end within the drain time
        shutdown_grace_period=serving.drain_s,
    )


@router.get("/v1/models")
async def list_models(serving: ServingNow) -> dict[str, Any]:
    """The served names."""
    return {"object": "list", "data": [card_body(card, serving) for card in serving.engine.models()]}


@router.get("/v1/models/{name:path}")
async def get_model(name: str, serving: ServingNow) -> dict[str, Any]:
    """One served name."""
    cards = serving.engine.models()
    for card in cards:
        if name in (card.id, *card.aliases):
            return card_body(card, serving)
    raise UnknownModel(name, [card.id for card in cards])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(serving: ServingNow) -> dict[str, Any]:
    """The engine takes requests."""
    stats = serving.engine.stats()
    if not stats.ready:
        raise EngineUnavailable("the engine takes no requests now")
    return {"status": "ready", "running": stats.running, "waiting": stats.waiting}


def card_body(card: ModelCard, serving: Serving) -> dict[str, Any]:
    return {
        "id": card.id,
        "object": "model",
        "created": serving.started,
        "owned_by": "llmforge",
        "root": card.base,
        "parent": card.base if card.adapter else None,
        "max_model_len": card.context_length or None,
    }


async def unless_client_leaves(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, or None when the client closed the connection before; `work` is cancelled then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
