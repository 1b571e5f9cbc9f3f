"""Who asks: the keys that clients send, and the clients' names behind them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llmforge.errors import RecipeError

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0  # how often the file is asked whether it changed
FIELDS = {"key", "sha256", "rate_limit", "admin"}
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Client:
    """One client: the name of its key, or its address where no key is asked for."""

    name: str
    is_admin: bool = False
    rate_limit: int | None = None  # requests per minute; None for the server's own limit


class Keys:
    """The keys a server takes. Only their hashes are kept, and each of them is compared, whatever the others said.

    Args:
        api_key: one key, with every right.
        path: a YAML file `name: KEY` or `name: {key: KEY, sha256: HASH, rate_limit: 60, admin: true}`; it is read anew
            when it changes, so keys come and go without a restart.
    """

    def __init__(self, api_key: str | None = None, path: Path | None = None):
        self._own = {_hash(api_key.encode()): Client("api_key", is_admin=True)} if api_key else {}
        self._path = path
        self._clients = dict(self._own)
        self._version: tuple[int, int] | None = None
        self._looked_at = 0.0
        if path is not None:
            self._clients |= read_keys(path)
            self._version = _version(path)

    @property
    def are_asked_for(self) -> bool:
        return bool(self._own) or self._path is not None

    def find(self, authorization: bytes) -> Client | None:
        """The client of an Authorization header, None when its key is unknown."""
        self._look()
        scheme, _, key = authorization.partition(b" ")
        given = _hash(key.strip())
        found = None
        for known, client in self._clients.items():
            if hmac.compare_digest(known, given):
                found = client
        return found if scheme.lower() == b"bearer" else None

    def _look(self) -> None:
        """Read the file again when it changed; a file that cannot be read leaves the keys as they were."""
        now = time.monotonic()
        if self._path is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            version = _version(self._path)
            if version != self._version:
                self._clients = self._own | read_keys(self._path)
                self._version = version
        except (OSError, RecipeError) as error:
            log.error("the keys stay as they were: %s", error)


def read_keys(path: Path) -> dict[bytes, Client]:
    """Clients by the hash of their key.

    Raises:
        RecipeError: what cannot be read; it names the client, never the key.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"api_keys_file: {path} cannot be read ({type(error).__name__})") from None
    if not isinstance(value, dict) or not value:
        raise RecipeError(f"api_keys_file: {path} must hold lines `name: KEY`")
    clients: dict[bytes, Client] = {}
    for name, entry in value.items():
        hashed, client = _client(str(name), entry, path)
        if hashed in clients:
            raise RecipeError(f"api_keys_file: {path}: {name} and {clients[hashed].name} have the same key")
        clients[hashed] = client
    return clients


def _client(name: str, entry: Any, path: Path) -> tuple[bytes, Client]:
    where = f"api_keys_file: {path}: {name}"
    said: Mapping[str, Any] = entry if isinstance(entry, dict) else {"key": entry}
    if unknown := set(map(str, said)) - FIELDS:
        raise RecipeError(f"{where}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(FIELDS))}")
    key, hashed, limit = said.get("key"), said.get("sha256"), said.get("rate_limit")
    if (key is None) == (hashed is None):
        raise RecipeError(f"{where}: needs its key, or the sha256 of it")
    if key is not None and not (isinstance(key, str) and key.strip() == key and key):
        raise RecipeError(f"{where}: a key is a text without spaces around it")
    if hashed is not None and not (isinstance(hashed, str) and SHA256.fullmatch(hashed)):
        raise RecipeError(f"{where}: sha256 has 64 digits of 0-9 and a-f")
    if limit is not None and not (isinstance(limit, int) and limit >= 1):
        raise RecipeError(f"{where}: rate_limit is a number of requests per minute, at least 1")
    if not isinstance(said.get("admin", False), bool):
        raise RecipeError(f"{where}: admin is true or false")
    code = _hash(key.encode()) if key is not None else bytes.fromhex(str(hashed))
    return code, Client(name, said.get("admin", False), limit)


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
