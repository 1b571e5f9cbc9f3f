"""`create_app`: an engine as an OpenAI-compatible server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from llmforge import __version__
from llmforge.infer.protocol import Engine, Sampling
from llmforge.serve.errors import add_handlers
from llmforge.serve.guard import Guard
from llmforge.serve.routes import Serving, router
from llmforge.serve.wire import ChatRequest


def create_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    defaults: Sampling | None = None,
    deadline_s: float | None = None,
    max_body_bytes: int = 4 << 20,
    drain_s: float = 30.0,
) -> FastAPI:
    """The app; it starts the engine when the server starts, and stops it with the server.

    Args:
        api_key: clients must send it as a bearer token to every address under /v1.
        defaults: sampling for what a request leaves out; OpenAI's own when not given.
        deadline_s: seconds a request may take, waiting included.
        drain_s: seconds after which a stream is cut when the server stops; longer than the engine takes to end it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()

    # No /docs: its page loads scripts from elsewhere. /openapi.json describes the API.
    app = FastAPI(title="Forge", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.serving = Serving(engine, defaults or Sampling(), deadline_s, drain_s, int(time.time()))
    app.include_router(router)
    add_handlers(app, list(ChatRequest.model_fields))
    app.add_middleware(Guard, api_key=api_key, max_body_bytes=max_body_bytes)
    return app
