"""The table of a gateway: a YAML file of `kind: gateway` with its workers and the names it serves."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from llmforge.config.given import Given, Problem, refuse
from llmforge.config.option import Rule, option
from llmforge.config.paths import find_input
from llmforge.config.sources import read_sources
from llmforge.config.values import check, convert, optional
from llmforge.config.yaml_text import shown
from llmforge.errors import nearest

NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class WorkerEntry:
    """One worker: a server that runs at `url`, or one that the gateway starts and watches."""

    name: str
    url: str | None = None  # up to and with /v1
    key_env: str | None = None  # environment variable with its API key
    slots: int = 1  # how much it bears beside the others
    run: tuple[str, ...] = ()  # words behind `forge-cli api`
    command: str | None = None  # or a shell line with {port}
    num_gpus: int = 0  # cards of its own; 0: what the gateway sees
    cards: str = ""  # their numbers, once they are given out; no key of the table


@dataclass(frozen=True)
class NameEntry:
    """A served name of the table: what workers call it, and what people are shown."""

    serves: str
    title: str = ""
    roles: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GatewayTable:
    """What a gateway serves and how it looks after its workers."""

    kind: str = option("gateway", "What this file is.", choices=("gateway",))
    host: str = option("127.0.0.1", "Address to listen on.")
    port: int = option(7690, "Port to listen on; 0 picks a free one.", at_least=0, at_most=65535)
    api_key: str | None = option(None, "Key clients must send; better set FORGE_API_KEY.", secret=True)
    api_keys_file: str | None = option(
        None, "YAML file of clients and their keys; those with admin: true may register workers.", path="input"
    )
    workers: list[Any] = option([], "Mappings of name and url, or of name and run or command; see docs/gateway.md.")
    models: dict = option(
        {}, "Served names: NAME: {serves, title, roles}; names of workers not listed stay as they are."
    )
    heartbeat_s: float = option(5.0, "Seconds between two looks at a worker.", above=0)
    expire_s: float = option(15.0, "Seconds a registered worker may be silent before it is struck off.", above=0)
    connect_timeout_s: float = option(5.0, "Seconds a connection to a worker may take.", above=0)
    timeout_s: float = option(600.0, "Seconds a worker may be silent in the middle of a request.", above=0)
    max_body_bytes: int = option(4 << 20, "Bytes a request may have.", above=0)
    log_dir: str = option("runs/gateway", "Folder for what workers started here print.", path="output")
    entries: tuple[WorkerEntry, ...] = ()
    names: dict[str, NameEntry] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def beat_s(self) -> float:
        """Seconds after which a registered worker should say again that it is there."""
        return min(self.heartbeat_s, self.expire_s / 3)


def load_table(words: Sequence[str]) -> GatewayTable:
    """Read and check the words behind `gateway`: files, then key=value.

    Raises:
        RecipeError: everything that is wrong, with file and line.
    """
    sources = read_sources(words)
    given = {item.key: item for layer in sources.layers for item in layer.given}
    problems = list(sources.problems)
    types = typing.get_type_hints(GatewayTable)
    rules = {f.name: f.metadata["rule"] for f in dataclasses.fields(GatewayTable) if "rule" in f.metadata}
    values: dict[str, Any] = {}
    for name, item in given.items():
        if name not in rules:
            problems.append(Problem(item.origin, f"{name}: no such key.{nearest(name, rules)}"))
        elif message := _read(item, types[name], rules[name], values):
            problems.append(Problem(item.origin, f"{name}: {message}"))
    if "kind" not in given:
        problems.append(Problem(None, "kind: missing; a table of workers says `kind: gateway`"))
    entries, found = _workers(values.get("workers", []), given.get("workers"))
    names, also = _names(values.get("models", {}), given.get("models"))
    if problems := problems + found + also:
        raise refuse(sources.files, problems)
    values.setdefault("api_key", os.environ.get("FORGE_API_KEY") or None)
    return GatewayTable(**values, entries=entries, names=names, files=tuple(sources.files))


def _read(item: Given, hint: Any, rule: Rule, values: dict[str, Any]) -> str | None:
    """Put a value in its type into `values`, or say what is wrong with it."""
    if item.value is None and not optional(hint):
        return None
    try:
        value = convert(item.value, hint, item.text)
    except ValueError as error:
        return f"got {shown(item.value)}, expected {error}"
    if message := check(value, rule, hint, rule.choices if not isinstance(rule.choices, str) else None, item.value):
        return message
    if rule.path == "input" and value is not None:
        path = find_input(value, item.origin)
        if path is None:
            return f"no file {value!r} beside the table or in the working directory"
        value = path
    values[item.key] = value
    return None


def _workers(rows: Sequence[Any], given: Given | None) -> tuple[tuple[WorkerEntry, ...], list[Problem]]:
    origin = given.origin if given else None
    entries: list[WorkerEntry] = []
    problems: list[Problem] = []
    for number, row in enumerate(rows):
        try:
            entry = read_worker(row)
            if entry.name in (other.name for other in entries):
                raise ValueError(f"name {entry.name!r} is there twice")
            entries.append(entry)
        except ValueError as error:
            problems.append(Problem(origin, f"workers[{number}]: {error}"))
    return tuple(entries), problems


def read_worker(row: Any) -> WorkerEntry:
    """One worker of the table or of a registration.

    Raises:
        ValueError: what is wrong with it.
    """
    types = {key: hint for key, hint in typing.get_type_hints(WorkerEntry).items() if key != "cards"}
    if not isinstance(row, Mapping):
        raise ValueError(f"got {shown(row)}, expected a mapping of name and url")
    if unknown := [key for key in row if key not in types]:
        raise ValueError(f"{unknown[0]}: no such key.{nearest(unknown[0], types)}")
    values: dict[str, Any] = {}
    for key, value in row.items():
        try:
            values[key] = _words(value) if key == "run" else convert(value, types[key])
        except ValueError as error:
            raise ValueError(f"{key}: got {shown(value)}, expected {error}") from None
    if not NAME.fullmatch(values.get("name") or ""):
        raise ValueError(f"name: got {values.get('name')!r}, expected letters, digits, dot, dash, underscore")
    ways = [key for key in ("url", "run", "command") if values.get(key)]
    if len(ways) != 1:
        raise ValueError(f"{values['name']}: expected one of url, run, command; got {' and '.join(ways) or 'none'}")
    if url := values.get("url"):
        check_worker_url(url)
        values["url"] = url.rstrip("/")
    if "{port}" not in (values.get("command") or "{port}"):
        raise ValueError(f"{values['name']}: command has no {{port}}")
    if values.get("slots", 1) < 1 or values.get("num_gpus", 0) < 0:
        raise ValueError(f"{values['name']}: slots is at least 1, num_gpus at least 0")
    if values.get("num_gpus") and "url" in ways:
        raise ValueError(f"{values['name']}: num_gpus belongs to workers that are started here")
    return WorkerEntry(**values)


def check_worker_url(url: str) -> None:
    """Raises ValueError: no http URL, or one with a password inside."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url: got {url!r}, expected http://HOST:PORT/v1")
    if parts.username or parts.password:
        raise ValueError("url: holds a name or password; put the key into the environment and name it in key_env")


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(value))
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return tuple(value)
    raise ValueError("the words behind `forge-cli api`")


def _names(rows: Mapping[str, Any], given: Given | None) -> tuple[dict[str, NameEntry], list[Problem]]:
    names: dict[str, NameEntry] = {}
    problems: list[Problem] = []
    known = [item.name for item in dataclasses.fields(NameEntry)]
    for name, row in rows.items():
        entry = {"serves": row} if isinstance(row, str) else {"serves": str(name)} | (row or {})
        origin = given.origin if given else None
        if unknown := [key for key in entry if key not in known]:
            problems.append(Problem(origin, f"models.{name}.{unknown[0]}: no such key.{nearest(unknown[0], known)}"))
        elif not isinstance(entry.get("roles", {}), dict):
            problems.append(Problem(origin, f"models.{name}.roles: expected a mapping, as {{assistant: Clerk}}"))
        else:
            names[str(name)] = NameEntry(**entry)
    return names, problems
