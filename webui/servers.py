"""Models that the board started behind an API: detached processes of `forge-cli api`, found again from their files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmforge.config.load import load_recipe
from llmforge.errors import ForgeError
from llmforge.model.sources import local_folder
from llmforge.process import is_running, process_start
from llmforge.runs import LIVE_STATES, RunState, atomic_write, list_runs, read_manifest
from llmforge.webui.board import Board
from llmforge.webui.detached import spawn
from llmforge.webui.jobs import tail
from llmforge.webui.noted import EXIT
from llmforge.webui.refusal import Refusal

ABOUT, LOG = "server.json", "server.log"
LAST_LINES = 12
VALUE_HEAD = "value_head.safetensors"
PROBE_S = 1.0


@dataclass(frozen=True)
class Server:
    """One started API."""

    folder: Path
    target: str  # a run folder, or what model_name_or_path takes
    port: int
    pid: int
    process_start: str | None
    started_at: float
    scores: bool = False  # a reward model: it gives scores instead of replies
    idle_minutes: float = 0  # without a question, after which it is unloaded; 0: never
    words: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Up to and with /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_alive(self) -> bool:
        return is_running(self.pid, self.process_start)

    @property
    def went_idle(self) -> bool:
        """Whether it was unloaded because nobody asked it."""
        try:
            return bool(json.loads((self.folder / EXIT).read_text(encoding="utf-8")).get("idle"))
        except (OSError, ValueError):
            return False

    def models(self) -> list[str]:
        """The served names; [] while it loads. Asked until it says them, a second at most."""
        if self.pid in _names:
            return _names[self.pid]
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/models", timeout=PROBE_S) as answer:
                _names[self.pid] = [card["id"] for card in json.load(answer)["data"]]
                return _names[self.pid]
        except (OSError, ValueError, KeyError):
            return []

    def last_words(self) -> str:
        """The end of its log."""
        return tail(self.folder / LOG, LAST_LINES)


def servers(board: Board) -> list[Server]:
    """All started APIs that have not been put away, the oldest first."""
    found = []
    for path in (board.own / "servers").glob(f"*/{ABOUT}"):
        try:
            found.append(Server(path.parent, **json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, OSError):
            continue  # half removed by another tab
    return sorted(found, key=lambda server: server.started_at)


def start_server(board: Board, target: str, idle_minutes: float = 0) -> Server:
    """Start the API of a run or model; one that runs already is taken.

    Args:
        idle_minutes: it is unloaded after so many minutes without a question; 0: never.

    Raises:
        Refusal: the target is empty, or leads out of the project.
    """
    target = target.strip()
    if not target:
        raise Refusal("chat.choose_target", "what")
    folder = board.own / "servers" / re.sub(r"[^\w.-]+", "_", target).strip("._")[:80]
    is_run = _is_folder(board, target)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for server in servers(board):
            if server.folder == folder and server.is_alive:
                return server
        port = _free_port()
        words = ["api", target if is_run else f"model_name_or_path={target}", f"port={port}", "host=127.0.0.1"]
        (folder / EXIT).unlink(missing_ok=True)
        tended = ["-m", "llmforge.webui.unloading", str(folder), f"{idle_minutes:g}", str(port)]
        process = spawn(board, [sys.executable, *tended, *words], folder / LOG)
        about: dict[str, Any] = {
            "target": target,
            "port": port,
            "pid": process.pid,
            "process_start": process_start(process.pid),
            "started_at": time.time(),
            "scores": is_run and (board.path(target) / VALUE_HEAD).is_file(),
            "idle_minutes": idle_minutes,
            "words": words,
        }
        atomic_write(folder / ABOUT, json.dumps(about, indent=1))
        return Server(folder, **about)


def stop_server(server: Server) -> None:
    """Let it answer what it is answering, and end; its log stays."""
    if server.is_alive:
        os.kill(server.pid, signal.SIGTERM)
    (server.folder / ABOUT).unlink(missing_ok=True)


def startable(board: Board, models: Sequence[str]) -> list[str]:
    """What can be chatted with: runs that hold a result, the newest first, then models on this machine."""
    done = [run for run in list_runs(board.runs) if run.state not in LIVE_STATES and _has_result(run)]
    return [*(board.shown(run.path) for run in done), *models]


def weight_bytes(board: Board, target: str) -> int:
    """Bytes of the weights that loading a run or model reads; 0 where they are not here yet."""
    is_run = _is_folder(board, target)
    base = (read_manifest(board.path(target)) or {}).get("base_model") if is_run else target
    folders = [board.path(target)] if is_run else []
    with contextlib.suppress(ForgeError):
        found = local_folder(load_recipe([f"model_name_or_path={base}"], "show").model) if base else None
        folders += [found] if found else []
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


def training(board: Board) -> list[RunState]:
    """Runs that keep this machine busy now."""
    return [run for run in list_runs(board.runs) if run.state in ("starting", "running", "stopping")]


def is_base(name: str, server: Server) -> bool:
    """Whether a served name is the untuned model beside a run's adapter."""
    return name != Path(server.target).name


def _has_result(run: RunState) -> bool:
    names = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")
    return any((run.path / name).is_file() for name in names) and read_manifest(run.path) is not None


def _is_folder(board: Board, target: str) -> bool:
    """Whether a target is a run folder of the project; a path that leads out of it is refused."""
    if target.startswith((".", "/", "~", "runs/")):
        return board.path(target, must_exist=True).is_dir()
    return (board.root / target / "adapter_config.json").is_file()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_names: dict[int, list[str]] = {}  # of servers that are ready
