"""`serve`: a recipe's model behind uvicorn."""

from __future__ import annotations

import errno
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmforge.config.names import ENGINES
from llmforge.config.schema import Recipe, ServeConfig
from llmforge.errors import RecipeError, require
from llmforge.infer.defaults import sampling_of
from llmforge.infer.protocol import Engine

DRAIN_S = 30.0
LAST_WORDS_S = 5.0  # for telling the clients whose replies did not end in DRAIN_S seconds
BACKLOG = 2048


def serve(recipe: Recipe) -> None:
    """Serve until SIGTERM or SIGINT; running requests get DRAIN_S seconds to end.

    Raises:
        RecipeError: the extra is missing, the port is taken, or the server would be open to others without a key.
    """
    for module in ("uvicorn", "fastapi", "sse_starlette"):
        require(module, "serve", "forge-cli api")
    import uvicorn

    from llmforge.serve.app import create_app
    from llmforge.serve.drain import DrainingServer

    config = recipe.serve
    check_open(config)
    listener = bind(config.host, config.port)  # before the model is loaded, which takes longer than to read a message
    engine: Engine = ENGINES.get(config.infer_backend).from_recipe(recipe)
    app = create_app(
        engine,
        api_key=config.api_key,
        defaults=sampling_of(recipe.generate),
        deadline_s=config.deadline_s,
        drain_s=DRAIN_S + LAST_WORDS_S,
    )
    patience_s = int(DRAIN_S + LAST_WORDS_S)
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=patience_s, backlog=BACKLOG
    )
    server = DrainingServer(settings, engine, DRAIN_S)
    print(welcome(config, listener.getsockname()[1], engine), flush=True)
    with signals_end_quietly():
        server.run(sockets=[listener])
    print("forge-cli: the server has stopped", file=sys.stderr)


def check_open(config: ServeConfig) -> None:
    """Raises:
    RecipeError: other machines could reach the server, and there is no key.
    """
    if not config.api_key and not is_loopback(config.host):
        raise RecipeError(
            f"host: {config.host} can be reached from other machines; set FORGE_API_KEY (or api_key), or host=127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        RecipeError: the port is taken or not allowed, or the host is no address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror as error:
        raise RecipeError(f"host: {host!r} is no address: {error.strerror}") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RecipeError(f"port: {port} on {host} is in use; choose another, or port=0 for a free one") from None
        raise RecipeError(f"host, port: cannot listen on {host}:{port}: {error.strerror}") from None
    listener.set_inheritable(False)
    return listener


def welcome(config: ServeConfig, port: int, engine: Engine) -> str:
    """What a user needs to try the server: address, names, a line to copy."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    names = [card.id for card in engine.models()]
    key = " -H 'Authorization: Bearer '$FORGE_API_KEY" if config.api_key else ""
    return (
        f"Serving {', '.join(names)} on http://{host}:{port}/v1 (Ctrl-C stops)\n"
        f"  curl http://{host}:{port}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )


@contextmanager
def signals_end_quietly() -> Iterator[None]:
    """uvicorn ends cleanly on SIGTERM and SIGINT, and then raises the signal once more; that one is swallowed."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
