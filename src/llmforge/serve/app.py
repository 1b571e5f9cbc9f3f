"""`create_app`: an engine as an OpenAI-compatible server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse

from llmforge import __version__
from llmforge.infer.protocol import Engine
from llmforge.serve import routes, routes_admin, routes_more
from llmforge.serve.access_log import AccessLog
from llmforge.serve.degrade import Switch
from llmforge.serve.errors import add_handlers
from llmforge.serve.guard import Guard
from llmforge.serve.keys import Keys
from llmforge.serve.line import Line
from llmforge.serve.metrics import Metrics
from llmforge.serve.observe import Observe
from llmforge.serve.openapi import describe, page
from llmforge.serve.rates import Rates
from llmforge.serve.serving import Serving
from llmforge.serve.settings import Settings

UNBOUNDED = 256  # replies at once where neither the recipe nor the engine says


def create_app(engine: Engine, settings: Settings | None = None, **changes: Any) -> FastAPI:
    """The app; it starts the engine when the server starts, and stops it with the server.

    Args:
        settings: what the server is run with; `changes` are fields of Settings, for an app without a recipe.

    Raises:
        RecipeError: a keys file, a switch file or an access log that cannot be used.
    """
    settings = settings or Settings(**changes)
    switch = Switch(settings.degrade_auto, settings.degrade_text, settings.degrade_file)
    line = Line(settings.max_running or UNBOUNDED, settings.max_queue, held=lambda: switch.holds)
    metrics = Metrics(engine, line, switch)
    keys = Keys(settings.api_key, settings.api_keys_file)
    log = AccessLog(settings.access_log) if settings.access_log else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()  # the number of its workers is known now
        line.max_running = settings.max_running or engine.capabilities().max_running or UNBOUNDED
        try:
            yield
        finally:
            await engine.stop()
            if log is not None:
                log.close()

    # FastAPI's own pages load scripts from elsewhere.
    app = FastAPI(
        title="Forge", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.state.serving = Serving(engine, settings, line, switch, metrics, int(time.time()))
    for router in (routes.router, routes_more.router, routes_admin.router):
        app.include_router(router)
    document = describe(app)
    html = page(document)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return document

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(html)

    add_handlers(app)
    app.add_middleware(
        Guard,
        keys=keys,
        rates=Rates(settings.rate_limit, settings.rate_limit_total),
        max_body_bytes=settings.max_body_bytes,
        root_path=settings.root_path,
        hosts=settings.hosts,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["x-request-id", "Retry-After"],
        )
    app.add_middleware(Observe, metrics=metrics, log=log)
    return app
