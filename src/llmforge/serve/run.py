"""`serve`: a recipe's model behind uvicorn."""

from __future__ import annotations

import dataclasses
import errno
import ipaddress
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from llmforge.config.names import ENGINES
from llmforge.config.schema import Recipe, ServeConfig
from llmforge.errors import RecipeError, RunError, nearest, require
from llmforge.infer.protocol import Engine
from llmforge.serve.settings import Settings

LAST_WORDS_S = 5.0  # for telling the clients whose replies did not end in time
BACKLOG = 2048
ENGINE_QUEUE = 65536
MOST_FILES = 65536
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(recipe: Recipe) -> None:
    """Serve until SIGTERM or SIGINT; accepted requests get `drain_s` seconds to end.

    Raises:
        RecipeError: the extra is missing, the port is taken, or the server would be open to others without a key.
        RunError: the engine died.
    """
    for module in ("uvicorn", "fastapi", "prometheus_client", "aiohttp"):
        require(module, "serve", "forge-cli api")
    import uvicorn

    from llmforge.serve.announce import Announcer
    from llmforge.serve.app import create_app
    from llmforge.serve.connections import KEEP_ALIVE_S, CarefulProtocol
    from llmforge.serve.drain import DrainingServer

    config = recipe.serve
    check_open(config)
    check_names(config, [])
    raise_file_limit()
    listener = bind(config.host, config.port)  # before the model is loaded, which takes longer than to read a message
    port = listener.getsockname()[1]
    announcer = Announcer.from_config(config, port)
    # The line before the engine bounds what waits, so the engine's own queue may be as long as it likes.
    unbounded = dataclasses.replace(recipe, serve=dataclasses.replace(config, max_queue=ENGINE_QUEUE))
    engine: Engine = ENGINES.get(config.infer_backend).from_recipe(unbounded)
    check_names(config, [name for card in engine.models() for name in (card.id, *card.aliases)])
    has_key = bool(config.api_key or config.api_keys_file)
    hosts = frozenset() if has_key else LOOPBACK | {config.host.lower()}
    app = create_app(engine, Settings.from_recipe(recipe, hosts))
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=CarefulProtocol.for_addresses(config.max_connections),
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(config.drain_s + LAST_WORDS_S),
        backlog=BACKLOG,
    )
    server = DrainingServer(
        settings,
        app.state.serving,
        config.drain_s,
        welcome=lambda: print(welcome(config, port, engine), flush=True),
        announcer=announcer,
    )
    with signals_end_quietly():
        server.run(sockets=[listener])
    if server.engine_is_lost:
        raise RunError("the engine died; the log above has the details")
    print("forge-cli: the server has stopped", file=sys.stderr)


def check_names(config: ServeConfig, served: list[str]) -> None:
    """Raises:
    RecipeError: an alias of a model that is not served (once it is known what is), or one that is no name.
    """
    for alias, name in config.model_aliases.items():
        if not isinstance(name, str) or (served and name not in served):
            known = f"; known: {', '.join(served)}" if served else ""
            raise RecipeError(f"model_aliases: {alias}: {name!r} is no served model.{nearest(name, served)}{known}")
        if alias in served:
            raise RecipeError(f"model_aliases: {alias!r} is the name of a served model already")


def raise_file_limit() -> None:
    """As many open connections as the system allows; the usual limit of 1,024 is reached too soon."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def check_open(config: ServeConfig) -> None:
    """Raises:
    RecipeError: other machines could reach the server, and there is no key.
    """
    if not config.api_key and not config.api_keys_file and not is_loopback(config.host):
        raise RecipeError(
            f"host: {config.host} can be reached from other machines; set FORGE_API_KEY (or api_key, api_keys_file), "
            "or host=127.0.0.1"
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
    key = " -H 'Authorization: Bearer '$FORGE_API_KEY" if config.api_key or config.api_keys_file else ""
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
