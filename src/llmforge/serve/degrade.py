"""The degradation switch: what the server does instead of answering, by hand or by itself."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmforge.errors import RecipeError
from llmforge.runs import atomic_write

log = logging.getLogger(__name__)
MODES = ("off", "queue", "canned", "hide")
WINDOW = 20  # requests looked at, none older than WINDOW_S
WINDOW_S = 60.0
MIN_FAILURES = 5
COOLDOWN_S = 30.0  # how long the server stays in its automatic mode; then one more failure brings it back
RETRY_S = 30


@dataclass
class Switch:
    """`off` serves as usual, `queue` keeps requests in line, `canned` answers `text`, `hide` refuses with 503.

    By hand a mode stays until it is changed, over restarts too where there is a file. With `auto` the server goes to
    that mode by itself when half of the last requests failed inside the engine, and tries again after a while.
    """

    auto: str = "off"
    text: str = ""
    path: Path | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.set_mode, self.since = "off", time.time()
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._auto_until = self._fragile_until = float("-inf")
        if self.path is not None and self.path.exists():
            self.set_mode, self.since = read_switch(self.path)

    @property
    def is_automatic(self) -> bool:
        return self.set_mode == "off" and self.clock() < self._auto_until

    @property
    def mode(self) -> str:
        return self.auto if self.is_automatic else self.set_mode

    @property
    def holds(self) -> bool:
        """Whether requests stay in line."""
        return self.mode == "queue"

    def turn(self, mode: str) -> None:
        """Set the mode by hand; "off" ends an automatic one too."""
        self.set_mode, self.since = mode, time.time()
        self._auto_until = self._fragile_until = float("-inf")
        self._outcomes.clear()
        log.warning("degradation: %s, by hand", mode)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, json.dumps({"mode": mode, "since": self.since}))

    def note(self, succeeded: bool) -> None:
        """Count a request that the engine has answered or failed at."""
        now = self.clock()
        self._outcomes.append((now, succeeded))
        if succeeded or self.auto == "off" or now < self._auto_until:
            return
        recent = [fine for at, fine in self._outcomes if now - at < WINDOW_S]
        failures = recent.count(False)
        if now < self._fragile_until or (failures >= MIN_FAILURES and 2 * failures >= len(recent)):
            self._auto_until, self._fragile_until = now + COOLDOWN_S, now + 2 * COOLDOWN_S
            self._outcomes.clear()
            self.since = time.time()
            log.error("degradation: %s for %g s, since requests fail", self.auto, COOLDOWN_S)

    def body(self) -> dict[str, Any]:
        """What the admin endpoint says."""
        return {"mode": self.mode, "automatic": self.is_automatic, "since": int(self.since), "auto": self.auto}


def read_switch(path: Path) -> tuple[str, float]:
    """Mode and time of a switch file.

    Raises:
        RecipeError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        mode, since = value["mode"], float(value["since"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"degrade_file: {path} cannot be read ({type(error).__name__}); delete it") from None
    if mode not in MODES:
        raise RecipeError(f"degrade_file: {path}: got mode {mode!r}, expected one of {', '.join(MODES)}")
    return mode, since
