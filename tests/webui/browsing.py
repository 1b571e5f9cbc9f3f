"""A real board and a real browser: `forge-cli webui` in a project folder of its own, Chromium driven by playwright."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SLOW = float(os.environ.get("FORGE_WEB_PATIENCE", "1"))  # a busy machine waits longer; no test measures with this
PATIENCE_S = 60 * SLOW
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--no-first-run",
    "--metrics-recording-only", "--disable-features=Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider",
)  # fmt: skip
HERE = ("127.0.0.1", "localhost", "::1", "")
# Of a board that was stopped, and of a page that was left.
OF_A_STOPPED_BOARD = ("net::ERR_", "Failed to fetch", "network error", "Connection errored out", "was aborted",
                      "signal is aborted")  # fmt: skip
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
SHOTS = os.environ.get("FORGE_WEB_SHOTS")  # where `shoot` puts pictures; none are made without it


def chromium() -> str | None:
    """The browser's path, None where there is none."""
    named = os.environ.get("CHROMIUM")
    found = [named] if named else [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((path for path in found if path and Path(path).exists()), None)


def why_not() -> str | None:
    """What a browser test lacks here."""
    for module, extra in (("gradio", "webui"), ("playwright", "dev"), ("axe_playwright_python", "dev")):
        if importlib.util.find_spec(module) is None:
            return f"no package {module}: pip install 'llmforge[{extra}]'"
    return None if chromium() else "no Chromium: apt-get install chromium, or CHROMIUM=/path"


@dataclass
class Board:
    """A running board over a project folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """As a power cut does: nothing is asked."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_board(folder: Path, *words: str, port: int | None = None) -> Board:
    """`forge-cli webui` in `folder`, answering."""
    port = port or free_port()
    log = folder / ".board.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FORGE_REVIEWER": "tester", "NO_COLOR": "1"}
    with open(log, "ab") as out:
        command = [sys.executable, "-m", "llmforge.cli", "webui", f"port={port}", *words]
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
    board = Board(folder, port, process, log)
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise AssertionError(
                f"the board ended with {process.returncode}:\n{log.read_text(errors='replace')[-3000:]}"
            )
        try:
            with urllib.request.urlopen(board.url, timeout=5):
                return board
        except OSError:
            time.sleep(0.2)
    board.kill()
    raise AssertionError(f"the board does not answer:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


@dataclass
class Watched:
    """What a page did that no page may do."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def follow(self, page: Any) -> None:
        page.on("request", lambda request: self._request(request.url))
        page.on("console", lambda message: message.type == "error" and self._error(message.text))
        page.on("pageerror", lambda error: self._error(str(error)))

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and (parts.hostname or "") not in HERE:
            self.outside.append(url)

    def _error(self, text: str) -> None:
        if not any(word in text for word in OF_A_STOPPED_BOARD):
            self.errors.append(text)


def serious(page: Any) -> list[str]:
    """What axe finds serious or critical: rule, where, and the element."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']} ({violation['impact']}): {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def settled(page: Any) -> None:
    """Wait until a page has loaded and is quiet; one that reads files every two seconds is never quiet for long."""
    with contextlib.suppress(Exception):  # playwright's TimeoutError
        page.wait_for_load_state("networkidle", timeout=3000 * SLOW)
    page.wait_for_timeout(400)


def shoot(page: Any, name: str) -> None:
    """A picture of the whole page, for the tour and for people; nothing without FORGE_WEB_SHOTS."""
    if SHOTS:
        folder = Path(SHOTS)
        folder.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(folder / f"{name}.png"), full_page=True)


def sideways(page: Any) -> int:
    """Pixels that the page can be scrolled sideways."""
    pixels: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return pixels


def choose(page: Any, id: str, value: str) -> None:
    """Take a value of a dropdown, as somebody does who types it."""
    field = page.locator(f"#{id} input")
    field.click()
    field.fill(value)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")


def no_evil(page: Any) -> None:
    """Nothing out of the data ran or became markup."""
    assert page.evaluate("window.evil") is None
    assert page.locator("main img[src=x], #page img[src=x]").count() == 0
    assert page.locator("#page a[href^='javascript:']").count() == 0
