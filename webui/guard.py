"""Who may reach the board: this machine alone, or whoever knows the password; and no other web page."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from llmforge.errors import RecipeError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_bind(host: str, password: str | None) -> None:
    """Raises:
    RecipeError: others could reach the board and there is no password.
    """
    if not is_loopback(host) and not password:
        raise RecipeError(
            f"webui: host {host} is reached from other machines, so it needs a password: set FORGE_WEBUI_PASSWORD, or "
            "leave host at 127.0.0.1 and use `ssh -L`"
        )


class Guard:
    """ASGI: refuses foreign origins and names, and asks for the password where there is one.

    Without a password only names of this machine are answered: a foreign page cannot point its own name at it.
    """

    def __init__(self, app: Any, password: str | None):
        self.app, self.password = app, password

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.refuses_origin(headers):
            await _answer(send, 403, b"This address is for pages of the board itself.")
        elif self.password and not self.knows_password(headers):
            await _answer(send, 401, b"Password needed.", [(b"www-authenticate", b'Basic realm="Forge"')])
        else:
            await self.app(scope, receive, send)

    def refuses_origin(self, headers: dict[str, str]) -> bool:
        """Whether a request comes from another page, or under a name that is not this machine's."""
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if not self.password and name not in LOCAL_NAMES:
            return True
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return True
        origin = headers.get("origin")
        return bool(origin) and urlsplit(origin).netloc != host

    def knows_password(self, headers: dict[str, str]) -> bool:
        """HTTP Basic; any user name, the password compared in constant time."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "basic":
            return False
        try:
            _, _, password = base64.b64decode(given, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return hmac.compare_digest(password.encode(), (self.password or "").encode())


async def _answer(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    start = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*start, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
