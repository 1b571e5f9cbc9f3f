"""Health, numbers, and what changes the server while it runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from llmforge.infer.protocol import EngineUnavailable
from llmforge.serve.body import read_body
from llmforge.serve.metrics import CONTENT_TYPE
from llmforge.serve.routes import ServingNow
from llmforge.serve.wire_text import DegradeRequest, LoadAdapterRequest, UnloadAdapterRequest

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(serving: ServingNow) -> dict[str, Any]:
    """The engine takes requests; 503 while it loads or stops, and when it has died."""
    if not serving.is_ready:
        raise EngineUnavailable("the server is stopping" if serving.is_stopping else "the engine takes no requests now")
    line, mode = serving.line, serving.switch.mode
    return {"status": "ready", "running": line.num_running, "waiting": line.num_waiting, "degraded": mode}


@router.get("/metrics")
async def metrics(serving: ServingNow) -> Response:
    """The numbers, as Prometheus reads them."""
    return Response(serving.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/admin/degrade")
async def get_switch(serving: ServingNow) -> dict[str, Any]:
    """Where the degradation switch stands."""
    return serving.switch.body()


@router.post("/admin/degrade")
async def turn_switch(request: Request, serving: ServingNow) -> dict[str, Any]:
    """off: as usual; queue: requests wait; canned: a fixed text; hide: 503."""
    body = await read_body(request, DegradeRequest)
    serving.switch.turn(body.mode)
    return serving.switch.body()


@router.post("/v1/load_lora_adapter")
async def load_adapter(request: Request, serving: ServingNow) -> dict[str, str]:
    """Serve one more adapter; requests go on meanwhile."""
    body = await read_body(request, LoadAdapterRequest)
    await serving.engine.load_adapter(body.lora_name, body.lora_path)
    return {"message": f"adapter {body.lora_name!r} is served"}


@router.post("/v1/unload_lora_adapter")
async def unload_adapter(request: Request, serving: ServingNow) -> dict[str, str]:
    """Serve an adapter no longer."""
    body = await read_body(request, UnloadAdapterRequest)
    await serving.engine.unload_adapter(body.lora_name)
    return {"message": f"adapter {body.lora_name!r} is served no longer"}
