"""`run_gateway`: the application behind uvicorn, with the workers that it starts itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from llmforge.errors import RecipeError, require
from llmforge.gateway.table import GatewayTable
from llmforge.serve.run import BACKLOG, bind, is_loopback, signals_end_quietly

DRAIN_S = 35


def run_gateway(table: GatewayTable, words: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT; requests under way get DRAIN_S seconds to end.

    Raises:
        RecipeError: the extra is missing, the port is taken, or the gateway would be open to others without a key.
    """
    for module in ("aiohttp", "uvicorn", "prometheus_client", "fastapi"):
        require(module, "serve", "forge-cli gateway")
    import uvicorn

    from llmforge.gateway.app import Gateway
    from llmforge.gateway.pool import Pool
    from llmforge.gateway.started import StartedWorkers
    from llmforge.serve.connections import KEEP_ALIVE_S, CarefulProtocol
    from llmforge.serve.keys import Keys

    if not (table.api_key or table.api_keys_file) and not is_loopback(table.host):
        raise RecipeError(
            f"host: {table.host} can be reached from other machines; set FORGE_API_KEY or api_keys_file, "
            "or host=127.0.0.1"
        )
    keys = Keys(table.api_key, Path(table.api_keys_file) if table.api_keys_file else None)
    listener = bind(table.host, table.port)
    pool = Pool(table, words)
    started = StartedWorkers(pool)
    pool.changed = started.follow_table
    settings = uvicorn.Config(
        Gateway(pool, keys),
        log_level="warning",
        access_log=False,
        http=CarefulProtocol.for_addresses(0),  # slow clients hold up nobody; other gateways may ask from one address
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
        backlog=BACKLOG,
    )
    server = uvicorn.Server(settings)
    port = listener.getsockname()[1]
    print(f"Gateway of {', '.join(pool.workers) or 'no workers yet'} on http://{table.host}:{port}/v1", flush=True)

    async def live() -> None:
        watching = asyncio.create_task(started.watch())
        try:
            await server.serve(sockets=[listener])
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await started.stop()

    with signals_end_quietly():
        asyncio.run(live())
    print("forge-cli: the gateway has stopped", file=sys.stderr)
