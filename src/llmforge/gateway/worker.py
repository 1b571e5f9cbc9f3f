"""One worker as the gateway knows it: where it is, what it serves, what it is doing, since when it is down."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmforge.gateway.table import WorkerEntry

if TYPE_CHECKING:
    import aiohttp

PROBE_S = 5.0


@dataclass(eq=False)
class Worker:
    """`url` changes for a worker that is started anew."""

    entry: WorkerEntry
    url: str | None
    is_registered: bool = False  # it came by itself, and goes when it is silent
    is_up: bool = False
    why: str = "not asked yet"  # it is down
    since: float = field(default_factory=time.time)  # it is up, or down
    heard: float = field(default_factory=time.monotonic)  # last registration
    models: dict[str, dict[str, Any]] = field(default_factory=dict)  # its cards by name, kept while it is down
    running: int = 0  # requests that the gateway has there
    last_used: float = 0.0
    answered: int = 0
    retried: int = 0  # requests given to another worker after this one failed them
    cut: int = 0  # streams that ended in the middle

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def load(self) -> float:
        return self.running / self.entry.slots

    @property
    def headers(self) -> dict[str, str]:
        # What is started here finds the gateway's own key in its environment, and asks for it.
        name = self.entry.key_env or ("FORGE_API_KEY" if self.entry.run else None)
        key = os.environ.get(name) if name else None
        return {"Authorization": f"Bearer {key}"} if key else {}

    def mark_up(self) -> None:
        if not self.is_up:
            self.is_up, self.why, self.since = True, "", time.time()

    def mark_down(self, why: str) -> None:
        if self.is_up or why != self.why:
            self.since = time.time() if self.is_up else self.since
            self.is_up, self.why = False, why

    async def probe(self, session: aiohttp.ClientSession) -> None:
        """Ask it for its models, and whether it takes requests; never raises."""
        import aiohttp

        if self.url is None:
            self.mark_down("starting")
            return
        timeout = aiohttp.ClientTimeout(total=PROBE_S)
        try:
            async with session.get(f"{self.url}/models", headers=self.headers, timeout=timeout) as answer:
                if answer.status != 200:
                    self.mark_down(f"/models answers {answer.status}")
                    return
                self.models = {card["id"]: card for card in (await answer.json())["data"]}
            ready_url = f"{self.url.removesuffix('/v1')}/readyz"
            async with session.get(ready_url, headers=self.headers, timeout=timeout) as answer:
                if answer.status == 503:
                    self.mark_down("not ready")
                    return
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            self.mark_down(f"no answer ({type(error).__name__})")
            return
        self.mark_up()

    def as_dict(self) -> dict[str, Any]:
        """Its row of GET /workers."""
        return {
            "name": self.name, "url": self.url, "state": "up" if self.is_up else "down", "why": self.why,
            "since": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(self.since)), "models": sorted(self.models),
            "registered": self.is_registered, "slots": self.entry.slots, "running": self.running,
            "answered": self.answered, "retried": self.retried, "cut": self.cut,
        }  # fmt: skip
