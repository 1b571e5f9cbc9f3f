"""A server that makes itself known to a gateway, again and again, and leaves when it stops."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from llmforge.config.schema import ServeConfig
from llmforge.errors import RecipeError

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)
RETRY_S = 5.0  # while the gateway cannot be reached, or refuses
TIMEOUT_S = 10.0  # of one call; the gateway looks at this server before it answers
LEAVE_S = 2.0
KEY_OF_ALL = "FORGE_API_KEY"


class Announcer:
    """Registers at a gateway, and is its heartbeat. A gateway that is away, or starts anew, is told once it is there.

    Args:
        gateway: its URL without path.
        key: an admin's key of it.
        row: name, url, slots and key_env, as the gateway's table has them.
    """

    def __init__(self, gateway: str, key: str, row: dict[str, Any]):
        self.gateway, self.row = gateway, row
        self._headers = {"Authorization": f"Bearer {key}"}
        self._said = ""
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: ServeConfig, port: int) -> Announcer | None:
        """The recipe's gateway; None when it names none.

        Args:
            port: where this server listens.

        Raises:
            RecipeError: no URL, no key, or an address at which the gateway could not reach this server.
        """
        if not config.gateway:
            return None
        url = config.gateway.rstrip("/").removesuffix("/v1")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
            raise RecipeError(f"gateway: got {config.gateway!r}, expected http://HOST:PORT")
        key = os.environ.get(config.gateway_key_env)
        if not key:
            raise RecipeError(
                f"gateway_key_env: {config.gateway_key_env} is not set; a gateway takes workers that come with an "
                "admin's key"
            )
        name = config.worker_name or re.sub(r"[^\w.-]", "-", f"{socket.gethostname()}-{port}")
        own_key = config.worker_key_env or (KEY_OF_ALL if config.api_key or config.api_keys_file else None)
        row = {"name": name, "url": config.worker_url or own_url(config.host, port, url), "slots": config.worker_slots}
        return cls(url, key, row | ({"key_env": own_key} if own_key else {}))

    def start(self) -> None:
        """Begin, on the running event loop; this server answers already."""
        self._task = asyncio.create_task(self._live())

    async def stop(self) -> None:
        """Be struck off, so that no new requests come; never raises."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        async with new_session(self._headers, LEAVE_S) as session:
            await self._call(session, "DELETE", f"/workers/{quote(self.row['name'])}")

    async def _live(self) -> None:
        async with new_session(self._headers) as session:
            while True:
                answer = await self._call(session, "POST", "/workers", self.row)
                if answer is None:
                    await asyncio.sleep(RETRY_S)
                else:
                    await asyncio.sleep(float(answer.get("heartbeat_s", RETRY_S)))

    async def _call(
        self, session: aiohttp.ClientSession, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The gateway's answer; None, and a line in the log when that is news, when it gave none or refused."""
        import aiohttp

        try:
            async with session.request(method, f"{self.gateway}{path}", json=body) as response:
                answer = await response.json()
                if response.status == 200:
                    self._say(f"registered as {self.row['name']}" if method == "POST" else "left")
                    return dict(answer)
                self._say(f"it refused with {response.status}: {answer['error']['message']}")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            self._say(f"no answer ({type(error).__name__})")
        return None

    def _say(self, what: str) -> None:
        if what != self._said:
            self._said = what
            log.warning("gateway %s: %s", self.gateway, what)


def own_url(host: str, port: int, gateway: str) -> str:
    """Where the gateway reaches this server: at its host, or where every address is listened on, at that from which
    this machine would speak to the gateway.

    Raises:
        RecipeError: a gateway elsewhere cannot reach a host that only this machine can.
    """
    parts = urlsplit(gateway)
    far = (str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*far, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as way:
            way.connect(address)  # sends nothing; the kernel chooses the way
            near = way.getsockname()[0]
    except OSError as error:
        raise RecipeError(f"gateway: no way to {far[0]}: {error.strerror}") from None
    if _is(host, "is_unspecified"):
        host = near
    elif (host == "localhost" or _is(host, "is_loopback")) and not _is(near, "is_loopback"):
        raise RecipeError(
            f"gateway: {far[0]} cannot reach this server at host {host}; set host=0.0.0.0 and a key, or worker_url"
        )
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def _is(host: str, what: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return False


def new_session(headers: dict[str, str], timeout_s: float = TIMEOUT_S) -> aiohttp.ClientSession:
    """One that goes through no proxy."""
    import aiohttp

    return aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=timeout_s))
