"""What can be asked on the page Chat: models the board loaded, models of other servers, and how the loaded ones are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from llmforge.infer.remote import check_url
from llmforge.webui import servers
from llmforge.webui.board import Board
from llmforge.webui.chat_client import Target
from llmforge.webui.markup import Safe, tag
from llmforge.webui.servers import Server
from llmforge.webui.words import Words


def choices(board: Board, words: Words, others: list[Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(label, value) of everything that answers, and of everything that scores."""
    answering, judging = [], []
    for server in servers.servers(board):
        for name in server.models() if server.is_alive else []:
            value = json.dumps([server.url, name, ""])
            if server.scores:
                judging.append((server.target, value))
            elif (board.root / server.target / "adapter_config.json").is_file():
                kind = "chat.base" if servers.is_base(name, server) else "chat.tuned"
                answering.append((words(kind, name=name), value))
            else:
                answering.append((name, value))
    answering += [(f"{name} ({url})", json.dumps([url, name, key])) for url, name, key in others]
    return answering, judging


def picked(values: list[str], now: list[str | None], count: int) -> list[str | None]:
    """What each column chooses: what it chose before while that is there, else the next that no other column has."""
    kept = [value if value in values else None for value in now]
    for i in range(count):
        if kept[i] is None:
            kept[i] = next((value for value in values if value not in kept), values[0] if values else None)
    return kept


def target_of(value: str) -> Target:
    """The server and model that a choice stands for.

    Raises:
        RecipeError: no server's URL.
    """
    url, model, key = json.loads(value)
    return Target(check_url(url), model, key)


def show_status(board: Board, words: Words, connected: bool = False) -> Safe:
    """What is loaded or loading, and a warning while the device trains; `connected`: another server answers."""
    lines = [
        tag("p", words("chat.training", name=run.path.name), class_="warn", role="status")
        for run in servers.training(board)
    ]
    found = servers.servers(board)
    for server in found:
        lines += _line(words, server)
    if not found and not connected:
        lines.append(tag("p", words("chat.no_server"), class_="calm"))
    return tag("div", *lines)


def _line(words: Words, server: Server) -> list[Safe]:
    """How one loaded model is, with a button that unloads it or puts its line away."""
    name, is_alive = Path(server.target).name, server.is_alive
    said = words("chat.unload" if is_alive else "chat.put_away", name=name)
    button = tag("button", said, type="button", class_="plain", data_pick=server.folder.name)
    if not is_alive and server.went_idle:
        return [tag("p", words("chat.idle", name=name, minutes=f"{server.idle_minutes:g}"), " ", button, class_="calm")]
    if not is_alive:
        log = tag("details", tag("summary", words("chat.log")), tag("pre", server.last_words()))
        return [tag("p", words("chat.ended", name=name), " ", button, class_="bad"), log]
    if server.models():
        return [tag("p", words("chat.ready", name=name), " ", button, class_="good")]
    seconds = round(time.time() - server.started_at)
    phase = tag("small", server.last_words().rpartition("\n")[2], lang="en")
    return [tag("p", words("chat.loading", name=name, seconds=seconds), " ", button, " ", phase, class_="calm")]
