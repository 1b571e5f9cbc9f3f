"""A server under test: started here or running already; its CPU time by process, and its memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from llmforge.errors import RecipeError, RunError
from llmforge.process import free_port

POLL_S = 0.1
STOP_S = 45.0  # time to drain
LAST_LINES = 15
PORT = "{port}"
NAMED = re.compile(r"([A-Za-z][\w.+-]*)=(.+)", re.DOTALL)


@dataclass
class Usage:
    """CPU seconds by process id, up to a moment."""

    seconds: dict[int, float]

    def since(self, before: Usage) -> dict[int, float]:
        return {pid: spent - before.seconds.get(pid, 0.0) for pid, spent in self.seconds.items()}


class Server:
    """One side of a comparison.

    Args:
        name: what the table calls it.
        command: shell line that starts it, `{port}` in it is filled in; None for a server that runs.
        url: up to and with `/v1`; None takes the port that was filled in.
        pids: processes whose CPU time counts, with their children, beside those of `command`.
    """

    def __init__(self, name: str, command: str | None, url: str | None, pids: Sequence[int] = ()):
        self.name, self.command, self.pids = name, command, list(pids)
        self.url = self.fixed_url = url
        self.output: Path | None = None
        self.start_s: float | None = None
        self.process: subprocess.Popen | None = None

    def start(self, folder: Path, patience_s: float, key: str | None) -> list[str]:
        """Start it and wait until it answers; the models it serves.

        Raises:
            RunError: it ended or did not answer in time; holds its last lines.
        """
        began = time.perf_counter()
        if self.command is not None:
            port = free_port()
            self.url = self.fixed_url or f"http://127.0.0.1:{port}/v1"
            self.output = folder / f"{self.name}.log"
            with open(self.output, "wb") as output:
                self.process = subprocess.Popen(
                    self.command.replace(PORT, str(port)), shell=True, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, process_group=0,
                )  # fmt: skip
        while True:
            models, why = list_models(str(self.url), key)
            if models:
                self.start_s = time.perf_counter() - began
                return models
            if self.process is not None and self.process.poll() is not None:
                raise RunError(f"{self.name} ended with {self.process.returncode}:\n{self.last_lines()}")
            if time.perf_counter() - began > (patience_s if self.command else 0):
                raise RunError(f"{self.name} does not answer at {self.url} ({why}){self.last_lines(' and said:')}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End it with its children: by SIGTERM, and by force when that takes too long."""
        if self.process is None:
            return
        family = family_of([self.process.pid])
        for number, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 10.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)
            _, family = psutil.wait_procs(family, timeout=patience)
            if not family:
                break
        for left in family:
            with contextlib.suppress(psutil.Error):
                left.kill()
        self.process.wait()
        self.process = None

    def last_lines(self, before: str = "") -> str:
        """What it printed last."""
        if self.output is None:
            return ""
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([before, *lines]) if lines else ""

    def family(self) -> list[psutil.Process]:
        """Its processes: started here, or named, with their children."""
        return family_of([*self.pids, *([self.process.pid] if self.process else [])])

    def usage(self) -> Usage:
        seconds = {}
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
        return Usage(seconds)

    def listener(self) -> int | None:
        """The process that takes connections."""
        port = urlsplit(str(self.url)).port
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if any(c.status == "LISTEN" and c.laddr.port == port for c in process.net_connections("tcp")):
                    return process.pid
        return None

    def memory_bytes(self) -> int | None:
        """Resident memory of all its processes; what they share counts once where the system tells (Linux)."""
        total = 0
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                seen = process.memory_full_info()
                total += getattr(seen, "pss", seen.rss)
        return total or None


def family_of(pids: Sequence[int]) -> list[psutil.Process]:
    """Processes and their descendants, each once, without those that are gone."""
    found = {}
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for each in (process, *process.children(recursive=True)):
                found[each.pid] = each
    return list(found.values())


def list_models(url: str, key: str | None) -> tuple[list[str], str]:
    """Names a server serves, or none and why."""
    request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return [card["id"] for card in json.load(answer)["data"]], "it serves no model"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], str(error)


def read_servers(commands: Sequence[str], urls: Sequence[str], pids: Sequence[str]) -> list[Server]:
    """Servers from the words of --server NAME="COMMAND", --url [NAME=]URL and --pid NAME=PID.

    A name with both a command and a URL is started here and asked there.

    Raises:
        RecipeError: a word of another form, a command without {port} or URL, a name twice.
    """
    named_urls: dict[str, str] = {}
    for word in urls:
        name, url = (found[1], found[2]) if (found := NAMED.fullmatch(word)) else (urlsplit(word).netloc, word)
        if not urlsplit(url).hostname or urlsplit(url).scheme not in ("http", "https"):
            raise RecipeError(f"--url: got {word!r}, expected http://HOST:PORT/v1 or NAME=http://HOST:PORT/v1")
        named_urls[name] = url.rstrip("/")
    servers: dict[str, Server] = {}
    for word in commands:
        found = NAMED.fullmatch(word)
        if not found:
            raise RecipeError(f"--server: got {word!r}, expected NAME=COMMAND")
        if found[1] in servers:
            raise RecipeError(f"--server: {found[1]} is named twice")
        if PORT not in found[2] and found[1] not in named_urls:
            raise RecipeError(f"--server: {found[1]} has no {PORT} in its command; or say --url {found[1]}=URL")
        servers[found[1]] = Server(found[1], found[2], named_urls.pop(found[1], None))
    servers |= {name: Server(name, None, url) for name, url in named_urls.items()}
    for word in pids:
        name, _, pid = word.rpartition("=")
        if not pid.isdecimal() or (name or next(iter(servers), "")) not in servers:
            raise RecipeError(f"--pid: got {word!r}, expected NAME=PID of a server that --url names")
        servers[name or next(iter(servers))].pids.append(int(pid))
    if not servers:
        raise RecipeError('bench serve: name a server, by --url URL or --server NAME="COMMAND ... {port}"')
    return list(servers.values())
